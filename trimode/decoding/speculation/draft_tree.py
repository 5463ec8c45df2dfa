"""A speculative draft as a tree: at some places more than one token is tried.

The denoiser proposes a distribution at each place. The second best token is often the verifier's,
so a verify pass of n rows accepts more when they are the n likeliest beginnings of an answer than
when they are one line of n tokens. Sources: SpecInfer (arXiv 2305.09781); Medusa (arXiv
2401.10774), whose heads are independent of each other too.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

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


def likeliest_tree(scores: Tensor, nodes: int) -> DraftTree:
    """The `nodes` likeliest beginnings of an answer whose tokens are independent of each other.

    Args:
        scores: unnormalised log-probabilities at each place, `[places, vocab]`.
        nodes: of the tree.
    """
    if not len(scores) or nodes < 1:
        return NOTHING
    branches = min(MAX_BRANCHES, nodes, scores.shape[-1])
    values, indices = _top(scores, branches)
    highest = values[:, :1]
    logs = (values - highest - (scores - highest).exp_().sum(-1, keepdim=True).log_()).tolist()
    ids = indices.tolist()
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    # (-log chance of the path, order of entry, place, rank at that place, parent)
    waiting = [(-logs[0][0], 0, 0, 0, ROOT)]
    entered = 0
    while waiting and len(tokens) < nodes:
        cost, _, place, rank, parent = heapq.heappop(waiting)
        node = len(tokens)
        tokens.append(ids[place][rank])
        parents.append(parent)
        chances.append(float(np.exp(-cost)))
        if rank + 1 < branches:
            entered += 1
            other = cost + logs[place][rank] - logs[place][rank + 1]
            heapq.heappush(waiting, (other, entered, place, rank + 1, parent))
        if place + 1 < len(logs):
            entered += 1
            heapq.heappush(waiting, (cost - logs[place + 1][0], entered, place + 1, 0, node))
    return DraftTree(tuple(tokens), tuple(parents), tuple(chances))


_GROUP = 64


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest of each row and where they are, highest first; both `[n, count]`.

    On a CPU this is four times as fast as `topk` over a large vocabulary. A group whose maximum is
    not among the `count` highest maxima can hold none of them.
    """
    n, vocab = scores.shape
    if vocab % _GROUP or vocab // _GROUP < count:
        values, indices = scores.topk(count)
        return values, indices
    groups = scores.view(n, -1, _GROUP)
    best = groups.amax(-1).topk(count).indices
    found = groups.gather(1, best[..., None].expand(-1, -1, _GROUP)).flatten(1).topk(count)
    return found.values, best.gather(1, found.indices // _GROUP) * _GROUP + found.indices % _GROUP
