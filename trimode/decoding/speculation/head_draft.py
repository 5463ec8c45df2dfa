"""Drafts of a draft head: a tree that grows as long as its next node pays."""

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from trimode.decoding.auto.policy import NodeWorth
from trimode.decoding.context import DraftHead
from trimode.decoding.sampling import Sampler
from trimode.decoding.speculation.draft_tree import NOTHING, ROOT, DraftTree

BRANCHES = 4
"""Tokens considered after one node."""


def head_draft(
    head: DraftHead,
    state: Tensor,
    history: Sequence[int],
    most: int,
    sampler: Sampler,
    worth: NodeWorth,
) -> DraftTree:
    """The likeliest beginnings of what follows the newest token, each node given those before it.

    Args:
        head: makes the guesses.
        state: the model's hidden state that chose the newest token, `[dim]`.
        history: all tokens, the newest last.
        most: nodes.
        sampler: of the request. Its noise is the verifier's, so a sampled token is guessed too.
        worth: when a further node pays.
    """
    if most < 1:
        return NOTHING
    if sampler.plain and (found := head.tree(state, history[-1], most, BRANCHES, worth)):
        words, before, sure = found
        return DraftTree(tuple(words), tuple(before), tuple(sure)) if words else NOTHING
    tokens: list[int] = []
    parents: list[int] = []
    chances: list[float] = []
    # (-chance of the path, order of entry, token, parent, state after the parent, path to it)
    waiting: list[tuple[float, int, int, int, Tensor, tuple[int, ...]]] = []
    node, path, chance = ROOT, (history[-1],), 1.0
    needed, entered = worth.least_chance(()), 0
    while len(tokens) < most:
        if chance >= needed:  # what follows a node is no likelier than the node
            state, logits = head.step(state, path[-1])
            for part, token in _likeliest(head, logits, [*history, *path[1:]], sampler):
                heapq.heappush(waiting, (-chance * part, entered, token, node, state, path))
                entered += 1
        if not waiting or -waiting[0][0] < needed:
            break
        cost, _, token, parent, state, before = heapq.heappop(waiting)
        node, path, chance = len(tokens), (*before, token), -cost
        tokens.append(token)
        parents.append(parent)
        chances.append(chance)
        needed = worth.least_chance(chances) if len(tokens) < most else 0.0
    return DraftTree(tuple(tokens), tuple(parents), tuple(chances)) if tokens else NOTHING


def _likeliest(
    head: DraftHead, logits: Tensor, history: Sequence[int], sampler: Sampler
) -> list[tuple[float, int]]:
    """Chances and tokens that may come next, the likeliest first."""
    scores = sampler.scores_among(head.tokens, logits, head.vocab_size, history)
    best = scores.topk(min(BRANCHES, len(scores)))
    chances = (best.values - torch.logsumexp(scores, -1)).exp_()
    return list(zip(chances.tolist(), head.tokens[best.indices].tolist(), strict=True))
