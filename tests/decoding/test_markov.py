"""Proposals judged again by the tokens before them: trees, and chains of a rolling block."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.modes.test_auto import COSTS, decode
from tests.decoding.modes.test_lossless import PROMPT, SAMPLED, agreeable
from tests.decoding.speculation.test_draft_tree import paths
from tests.decoding.test_sampling import sampler
from trimode.config import GenerationOptions
from trimode.decoding.markov import CANDIDATES, Neighbours, candidates_of, chained, tokens_before
from trimode.decoding.speculation.draft_tree import likeliest_tree

BEFORE = (2, 3)


class Table:
    """A head that adds a number for each place, each of the two tokens before and candidate."""

    def __init__(self, added):
        self.added = added

    def at(self, _, candidates):
        return lambda place, before: self.row(place, before)[candidates[place]].numpy()

    def row(self, place, before):
        earlier, newest = before
        return self.added[place, newest] - 0.7 * self.added[place, earlier].flip(0)

    def tree(self, *_, **__):
        return None


def drawn(places, vocab, seed):
    made = torch.Generator().manual_seed(seed)
    added = 2 * torch.randn(places, vocab, vocab, generator=made)
    return 2 * torch.randn(places, vocab, generator=made), added


@settings(max_examples=60, deadline=None)
@given(places=st.integers(1, 3), nodes=st.integers(1, 20), seed=st.integers(0, 999))
def test_nodes_of_a_tree_are_the_likeliest_beginnings_each_given_the_tokens_before(
    places, nodes, seed
):
    scores, added = drawn(places, 6, seed)
    head, every = Table(added), {}
    for length in range(1, places + 1):
        for path in itertools.product(range(6), repeat=length):
            chance = 1.0
            text = (*BEFORE, *path)
            for place, token in enumerate(path):
                row = scores[place] + head.row(place, text[place : place + 2])
                chance *= float(row.double().softmax(-1)[token])
            every[path] = chance
    known = Neighbours(scores.clone(), torch.zeros(places, 1), head, 1.0)
    tree = likeliest_tree(known, BEFORE, nodes)
    found = paths(tree)
    assert len(set(found)) == len(found)
    assert tree.chances == pytest.approx([every[path] for path in found], rel=1e-4)
    assert list(tree.chances) == sorted(tree.chances, reverse=True)
    if nodes >= 6:  # with fewer, as many tokens of a place are considered
        best = sorted(every.values(), reverse=True)[: len(found)]
        assert sorted(tree.chances, reverse=True) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("vocab", [5, CANDIDATES, 64 * 40])
def test_candidates_and_the_others_are_all_there_is(vocab):
    scores = 3 * torch.randn(4, vocab, generator=torch.Generator().manual_seed(1))
    found = candidates_of(scores.clone(), CANDIDATES)
    assert found.ids.shape[1] == min(vocab, CANDIDATES)
    assert torch.equal(found.scores, scores.gather(1, found.ids))
    total = torch.cat((found.scores, found.others[:, None]), -1).logsumexp(-1)
    torch.testing.assert_close(total, scores.logsumexp(-1), rtol=1e-4, atol=1e-4)


def test_scores_rise_with_the_head_as_they_do_with_logits():
    scores, added = drawn(2, 6, 7)
    flat, sharp = (
        Neighbours(scores / t, torch.zeros(2, 1), Table(added), 1 / t) for t in (1.0, 0.25)
    )
    assert np.allclose(sharp.scores(1, BEFORE), 4 * flat.scores(1, BEFORE), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_chain_chooses_from_left_to_right(temperature):
    context = agreeable(0).engine()._resolve(PROMPT, GenerationOptions())
    chooser = sampler(temperature=temperature, seed=4)
    for seed in range(20):
        scores, added = drawn(4, 12, seed)
        head, known = Table(added), [7, 4]
        asked = replace(context, sampler=chooser, markov_head=head)
        text, positions = [9, None, None, 5, None, None], (1, 2, 4, 5)  # two runs of masks
        rows, tokens = chained(
            scores.clone(), torch.zeros(4, 1), positions, text.__getitem__, known, asked
        )
        for place, position in enumerate(positions):
            row = scores[place] + head.row(place, tokens_before(position, text.__getitem__))
            torch.testing.assert_close(rows[place], row)
            text[position] = chooser.pick(row.clone(), position, known)
        assert tokens.tolist() == [text[position] for position in positions]


def with_head(model, head):
    return replace(model, model=replace(model.model, markov_head=head))


class Anything:
    """A head of random numbers."""

    def __init__(self, seed):
        self.draw, self.asked = np.random.default_rng(seed), 0

    def prepare(self):
        pass

    def at(self, states, candidates):
        assert len(states) == len(candidates)
        self.asked += 1
        return lambda place, _: 3 * self.draw.standard_normal(candidates.shape[1], np.float32)

    def tree(self, *_, **__):
        return None


@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "linear", "seed_block": False, "draft_tree": True},
        {"mode": "quadratic", "draft_tree": True},
    ],
    ids=["linear", "quadratic"],
)
def test_a_head_of_random_numbers_changes_no_text(mode, options):
    for seed in range(2):
        model = agreeable(seed)
        expected = model.generate(PROMPT, max_tokens=40, **options).tokens
        guessing = with_head(model, Anything(seed))
        found = guessing.generate(PROMPT, max_tokens=40, block_length=5, **mode, **options)
        assert found.tokens == expected
        assert guessing.model.markov_head.asked > 0


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
def test_auto_keeps_its_text_too(costs):
    model = agreeable(1)
    expected = model.generate(PROMPT, max_tokens=48).tokens
    asked = {"max_tokens": 48, "draft_tree": True}
    assert decode(with_head(model, Anything(1)).model, costs, **asked).tokens == expected


def test_a_rolling_block_takes_the_head_s_word():
    """Where AR confirms everything, only what is proposed decides how the text goes on."""
    model = agreeable(1)
    plain = {"mode": "diffusion", "rolling_block": True, "threshold": 0.0}
    kept = {"revision_threshold": 0.0, "block_length": 4, "max_tokens": 24}
    without = model.generate(PROMPT, **plain, **kept).tokens
    guessing = with_head(model, Anything(5))
    assert guessing.generate(PROMPT, **plain, **kept).tokens != without


@pytest.mark.parametrize("form", [{"seed_block": True}, {"rolling_block": False}], ids=str)
def test_a_fixed_block_asks_the_head_if_ar_judges_what_it_fills(form):
    model = agreeable(0)
    asked = {"mode": "diffusion", "block_length": 5, "max_tokens": 20, "threshold": 0.3, **form}
    plain = {floor: model.generate(PROMPT, **asked, revision_threshold=floor) for floor in (0.0, 1)}
    for floor, used in ((0.0, False), (1, True)):
        guessing = with_head(model, Anything(0))
        found = guessing.generate(PROMPT, **asked, revision_threshold=floor)
        assert found.tokens == plain[floor].tokens  # a floor of 1 leaves nothing but AR's choices
        assert (guessing.model.markov_head.asked > 0) == used
