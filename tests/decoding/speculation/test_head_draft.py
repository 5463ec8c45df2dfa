"""Drafts of a draft head: the likeliest beginnings, as many as pay."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.speculation.test_draft_tree import paths
from tests.decoding.test_sampling import sampler
from trimode.decoding.speculation.head_draft import head_draft

WORDS = torch.tensor([2, 3, 5, 7])


class Chain:
    """Logits are a function of the last two tokens; a state is the token before."""

    tokens, vocab_size = WORDS, 9

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(9, 9, len(WORDS), generator=generator)
        self.steps = 0

    def step(self, state, token):
        self.steps += 1
        return torch.tensor([token]), self.table[int(state[0]), token]

    def tree(self, *_):
        return None

    def chance(self, before, path):
        """Of a path after two tokens."""
        chance, history = 1.0, list(before)
        for token in path:
            row = self.table[history[-2], history[-1]].double().softmax(-1)
            chance *= float(row[(token == WORDS).nonzero()[0, 0]])
            history.append(token)
        return chance


class Worth:
    """A node pays from a chance on that may depend on those before it."""

    def __init__(self, least):
        self.least_chance = least


def draft(head, most, *, least=lambda _: 0.0, history=(1, 4), **options):
    state, worth = torch.tensor([history[-2]]), Worth(least)
    return head_draft(head, state, history, most, sampler(**options), worth)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), nodes=st.integers(1, 5))
def test_the_nodes_are_the_likeliest_beginnings(seed, nodes):
    head = Chain(seed)
    every = [
        head.chance((1, 4), path)
        for length in range(1, nodes + 1)
        for path in itertools.product(WORDS.tolist(), repeat=length)
    ]
    found = draft(head, nodes)
    best = sorted(every, reverse=True)[:nodes]
    assert list(found.chances) == pytest.approx(best, rel=1e-4)
    assert [head.chance((1, 4), path) for path in paths(found)] == pytest.approx(best, rel=1e-4)


def test_it_ends_at_the_first_node_that_does_not_pay():
    whole = draft(Chain(3), 8)
    bar = whole.chances[3]
    cut = draft(Chain(3), 8, least=lambda _: bar)
    assert cut == whole.first(4)
    asked = []
    draft(Chain(3), 8, least=lambda chances: asked.append(tuple(chances)) or 0.0)
    assert asked == [whole.chances[:i] for i in range(8)]


def test_a_node_whose_children_cannot_pay_is_not_stepped_from():
    head = Chain(3)
    best = draft(head, 1).chances[0]
    head.steps = 0
    draft(head, 8, least=lambda chances: best if len(chances) else 0.0)
    assert head.steps <= 2
    head.steps = 0
    assert not draft(head, 8, least=lambda _: 2.0)
    assert head.steps == 0


def test_no_room_is_no_step():
    head = Chain(0)
    assert not draft(head, 0)
    assert head.steps == 0


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0, "seed": 7}, {"logit_bias": ((5, 3.0),)}], ids=str
)
def test_scores_are_those_that_the_verifier_chooses_by(options):
    """The best node is what sampling would choose from the head's own logits."""
    head = Chain(1)
    logits = torch.full((1, 9), -torch.inf)
    logits[0, WORDS] = head.table[1, 4]
    chosen = int(sampler(**options).sample(logits, 2, (1, 4)))
    assert draft(head, 3, **options).tokens[0] == chosen
