"""A speculative draft as a tree: at some places more than one token is tried.

The denoiser proposes a distribution at each place, which a Markov head makes depend on the tokens
before it. The second best token is often the verifier's, so a verify pass of n rows accepts more
when they are the n likeliest beginnings of an answer than when they are one line of n tokens.
Sources: SpecInfer (arXiv 2305.09781); Medusa (arXiv 2401.10774), whose heads are independent of
each other too.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trimode.decoding.context import Before
from trimode.decoding.sampling import highest

ROOT = -1
"""The node before the draft: a token that is known."""
MAX_BRANCHES = 8
"""Tokens considered at one place."""


@dataclass(frozen=True, slots=True)
class DraftTree:
    """Drafted tokens; parents come before their children."""

    tokens: tuple[int, ...] = ()
    parents: tuple[int, ...] = ()
    """Number of the node that each follows, `ROOT` for the first ones."""
    chances: tuple[float, ...] = ()
    """That a node and all before it are right, never rising from a parent to its child."""
    depths: tuple[int, ...] = field(init=False)
    """Tokens from the root to each node, itself included."""

    def __post_init__(self) -> None:
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        object.__setattr__(self, "depths", tuple(depths))

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def line(cls, tokens: Sequence[int], chances: Sequence[float] = ()) -> "DraftTree":
        """One token at each place; `chances` of each, given those before it."""
        sure = np.cumprod(chances) if len(chances) else np.ones(len(tokens))
        return cls(tuple(tokens), tuple(range(-1, len(tokens) - 1)), tuple(sure.tolist()))

    def first(self, count: int) -> "DraftTree":
        """The first `count` nodes."""
        if count >= len(self):
            return self
        return DraftTree(self.tokens[:count], self.parents[:count], self.chances[:count])

    def up_to(self, depth: int) -> "DraftTree":
        """Without the nodes deeper than `depth`."""
        if not self.depths or max(self.depths) <= depth:
            return self
        kept = [i for i, d in enumerate(self.depths) if d <= depth]
        place = {ROOT: ROOT} | {old: new for new, old in enumerate(kept)}
        return DraftTree(
            tuple(self.tokens[i] for i in kept),
            tuple(place[self.parents[i]] for i in kept),
            tuple(self.chances[i] for i in kept),
        )

    def child(self, node: int, token: int) -> int | None:
        """The child of a node that has this token."""
        for i in range(node + 1, len(self)):
            if self.parents[i] == node and self.tokens[i] == token:
                return i
        return None

    def has_children(self, node: int) -> bool:
        """Whether anything was drafted after a node."""
        return node in self.parents

    @property
    def is_line(self) -> bool:
        """Whether no place has two tokens."""
        return self.parents == tuple(range(-1, len(self) - 1))

    def main_line(self) -> tuple[list[int], list[float]]:
        """The likeliest token at each place and the chance of each, given those before it."""
        tokens: list[int] = []
        chances: list[float] = []
        node, before = ROOT, 1.0
        while node in self.parents:
            node = self.parents.index(node)  # children stand by falling chance
            tokens.append(self.tokens[node])
            chances.append(self.chances[node] / before if before else 0.0)
            before = self.chances[node]
        return tokens, chances

    def visibility(self) -> Tensor:
        """Who sees whom of root and nodes, bool `[1 + n, 1 + n]`: each its own path."""
        seen = np.zeros((1 + len(self), 1 + len(self)), dtype=bool)
        seen[0, 0] = True
        for i, parent in enumerate(self.parents):
            seen[1 + i] = seen[1 + parent]
            seen[1 + i, 1 + i] = True
        return torch.from_numpy(seen)


NOTHING = DraftTree()
"""No draft."""


class Places(Protocol):
    """What may stand at the places of a draft."""

    def __len__(self) -> int: ...

    def branches(self, place: int, before: Before, count: int, /) -> tuple[list[float], list[int]]:
        """Logarithms of the chances of the likeliest tokens, highest first, and their ids.

        `before`: the tokens before the place.
        """
        ...


class Independent:
    """Places whose tokens do not depend on each other."""

    def __init__(self, scores: Tensor) -> None:
        """`scores`: unnormalised log-probabilities, `[places, vocab]`."""
        best = highest(scores, min(MAX_BRANCHES, scores.shape[-1]))
        top = best.values[:, :1]
        logs = best.values - top - (scores - top).exp_().sum(-1, keepdim=True).log_()
        self._logs, self._ids = logs.tolist(), best.indices.tolist()

    def __len__(self) -> int:
        return len(self._ids)

    def branches(self, place: int, _: Before, count: int) -> tuple[list[float], list[int]]:
        """See `Places`."""
        return self._logs[place][:count], self._ids[place][:count]


def likeliest_tree(places: Places, before: Before, nodes: int) -> DraftTree:
    """The `nodes` likeliest beginnings of an answer.

    Args:
        places: what may stand at each place.
        before: the tokens before the first place.
        nodes: of the tree.
    """
    if not len(places) or nodes < 1:
        return NOTHING
    count = min(MAX_BRANCHES, nodes)
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    logs, ids = places.branches(0, before, count)
    # (-log chance of the path, order of entry, place, rank at that place, parent, the tokens before
    # and what branches off)
    waiting = [(-logs[0], 0, 0, 0, ROOT, before, logs, ids)]
    entered = 0
    while waiting and len(tokens) < nodes:
        cost, _, place, rank, parent, before, logs, ids = heapq.heappop(waiting)
        node = len(tokens)
        tokens.append(ids[rank])
        parents.append(parent)
        chances.append(float(np.exp(-cost)))
        if rank + 1 < len(ids):
            entered += 1
            other = cost + logs[rank] - logs[rank + 1]
            heapq.heappush(waiting, (other, entered, place, rank + 1, parent, before, logs, ids))
        if place + 1 < len(places) and node + 1 < nodes:
            entered += 1
            known = before[1], ids[rank]
            after, following = places.branches(place + 1, known, count)
            heapq.heappush(
                waiting, (cost - after[0], entered, place + 1, 0, node, known, after, following)
            )
    return DraftTree(tuple(tokens), tuple(parents), tuple(chances))
