"""Proposals of masks, each judged again by the tokens before it: what a Markov head is for.

A pass proposes tokens for several masks as if they did not depend on each other. From left to
right they do: once a token is chosen, the best candidates of the next place are compared anew.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trimode.decoding.context import Before, DecodingContext, MarkovHead
from trimode.decoding.sampling import highest

CANDIDATES = 32
"""Tokens of a place that are compared anew. The others keep their scores, and are not chosen."""
_MOST = 80.0
"""Its exponential is a number still."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The best tokens of some places."""

    ids: Tensor
    """`[places, k]`."""
    scores: Tensor
    """Theirs, highest first, `[places, k]`."""
    others: Tensor
    """log(sum(exp(scores))) of all other tokens, `[places]`."""


def candidates_of(scores: Tensor, count: int) -> Candidates:
    """The `count` best of scores `[places, vocab]`."""
    best = highest(scores, min(count, scores.shape[-1]))
    top = best.values[:, :1]
    rest = (scores - top).exp_().sum(-1) - (best.values - top).exp_().sum(-1)
    others = rest.clamp_(min=torch.finfo(torch.float32).tiny).log_() + top[:, 0]
    return Candidates(best.indices, best.values, others)


class Neighbours:
    """The best candidates of some places, given the tokens before each."""

    def __init__(self, scores: Tensor, states: Tensor, head: MarkovHead, sharpness: float) -> None:
        """What is needed of the places, once.

        Args:
            scores: to choose the best of, `[places, vocab]`.
            states: hidden states of the places' masks, `[places, dim]`.
            head: judges.
            sharpness: by how much a score rises with its logit.
        """
        found = candidates_of(scores, CANDIDATES)
        ids = found.ids.cpu()
        self._after, self._sharpness = head.at(states, ids), sharpness
        self.ids, self._scores = ids.numpy(), found.scores.cpu().numpy()
        self._others: list[float] = found.others.tolist()

    def __len__(self) -> int:
        return len(self.ids)

    def scores(self, place: int, before: Before) -> np.ndarray:
        """Scores of the candidates of a place, given the tokens before it, `[k]`."""
        return self._scores[place] + self._sharpness * self._after(place, before)

    def branches(self, place: int, before: Before, count: int) -> tuple[list[float], list[int]]:
        """Logarithms of the chances of the likeliest candidates, highest first, and their ids."""
        scores = self.scores(place, before)
        order = scores.argsort()[: -count - 1 : -1]
        top = float(scores[order[0]])
        total = float(np.exp(scores - top).sum())
        total += math.exp(min(self._others[place] - top, _MOST))
        logs = scores[order] - (top + math.log(total))
        return logs.tolist(), self.ids[place][order].tolist()


def tokens_before(position: int, token_at: Callable[[int], int]) -> Before:
    """The two tokens before a position; the first of all twice if there is no other."""
    return token_at(max(0, position - 2)), token_at(position - 1)


def chained(
    rows: Tensor,
    states: Tensor,
    positions: Sequence[int],
    decided: Callable[[int], int],
    known: Sequence[int],
    context: DecodingContext,
) -> tuple[Tensor, Tensor]:
    """Proposals from left to right, each given the tokens before it.

    Args:
        rows: logits of some places, `[n, vocab]`; changed in place.
        states: hidden states of their masks, `[n, dim]`.
        positions: of the places, rising; none is 0.
        decided: position -> the token there, for all before them and between them.
        known: all tokens decided so far.
        context: the request; it has a Markov head.

    Returns:
        The logits and the tokens proposed, `[n]`.
    """
    assert context.markov_head is not None
    neighbours = Neighbours(rows, states, context.markov_head, 1.0)
    chosen: dict[int, int] = {}

    def token_at(position: int) -> int:
        return chosen[position] if position in chosen else decided(position)

    for place, (row, position) in enumerate(zip(rows, positions, strict=True)):
        before = tokens_before(position, token_at)
        ids = torch.from_numpy(neighbours.ids[place])
        row[ids] = torch.from_numpy(neighbours.scores(place, before)).to(row)
        chosen[position] = int(context.sampler.sample(row[None], position, known))
    return rows, torch.tensor(list(chosen.values()), device=rows.device)
