"""Filters against their definitions, Gumbel-max against the softmax, and verification by hand."""

import itertools
import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.reference.tiny import MASK
from trimode.config import GenerationOptions
from trimode.decoding import Logits, Sampler
from trimode.decoding.sampling import (
    filter_scores,
    gumbel_noise,
    penalise_frequency,
    penalise_repetition,
)
from trimode.decoding.speculation import verify
from trimode.decoding.speculation.draft_tree import DraftTree

logits_rows = st.lists(
    st.lists(st.floats(-8, 8, width=32), min_size=9, max_size=9), min_size=1, max_size=3
).map(torch.tensor)


def sampler(mask=None, prompt_length=0, **options):
    return Sampler(GenerationOptions(**options), mask, prompt_length)


def kept(scores):
    return [{i for i, value in enumerate(row) if value > -math.inf} for row in scores.tolist()]


def top_k(row, k):
    bar = sorted(row, reverse=True)[k - 1] if 0 < k < len(row) else -math.inf
    return {i for i, value in enumerate(row) if value >= bar}


def softmax(row):
    highest = max(row)
    weights = [math.exp(value - highest) for value in row]
    return [weight / sum(weights) for weight in weights]


def clear_of_nucleus_edge(row, p):
    total = 0.0
    for probability in sorted(softmax(row), reverse=True):
        total += probability
        if abs(total - p) < 1e-5:
            return False
    return len(set(row)) == len(row)


def top_p(row, p):
    """The smallest set of most probable tokens that holds at least p."""
    chosen, total = set(), 0.0
    probabilities = softmax(row)
    for i in sorted(range(len(row)), key=lambda i: -row[i]):
        if total >= p:
            break
        chosen.add(i)
        total += probabilities[i]
    return chosen


@given(scores=logits_rows, k=st.integers(0, 12))
def test_top_k_keeps_the_k_best_and_ties_with_the_last_of_them(scores, k):
    expected = [top_k(row, k) for row in scores.tolist()]
    assert kept(filter_scores(scores, GenerationOptions(top_k=k))) == expected


@given(scores=logits_rows, p=st.floats(0.05, 1.0))
def test_top_p_keeps_the_smallest_set_that_holds_p(scores, p):
    rows = [row for row in scores.tolist() if clear_of_nucleus_edge(row, p)]
    assume(rows)
    found = kept(filter_scores(torch.tensor(rows), GenerationOptions(top_p=p)))
    assert found == [top_p(row, p) for row in rows]


@given(scores=logits_rows, share=st.floats(0.0, 1.0))
def test_min_p_keeps_what_reaches_that_share_of_the_best(scores, share):
    found = kept(filter_scores(scores, GenerationOptions(min_p=share)))
    for row, got in zip(scores.tolist(), found, strict=True):
        ratios = {i: math.exp(value - max(row)) for i, value in enumerate(row)}
        assert got >= {i for i, ratio in ratios.items() if ratio > share + 1e-5}
        assert not got & {i for i, ratio in ratios.items() if ratio < share - 1e-5}


@given(
    scores=logits_rows,
    k=st.integers(0, 9),
    p=st.floats(0.01, 1.0),
    share=st.floats(0.0, 1.0),
)
def test_filters_always_leave_the_best_token_and_change_no_other_score(scores, k, p, share):
    result = filter_scores(scores, GenerationOptions(top_k=k, top_p=p, min_p=share))
    assert (result.max(-1).values == scores.max(-1).values).all()
    left = result > -math.inf
    assert torch.equal(result[left], scores[left])


def test_filters_apply_in_the_order_k_p_min_p():
    """Top-p acts on what top-k left: 0.5 and 0.3 renormalise to 0.625 and 0.375."""
    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert kept(filter_scores(scores, GenerationOptions(top_k=2, top_p=0.6))) == [{0}]
    assert kept(filter_scores(scores, GenerationOptions(top_p=0.6))) == [{0, 1}]


@given(
    scores=logits_rows,
    history=st.lists(st.integers(0, 8), max_size=6),
    penalty=st.floats(0.25, 4.0),
)
def test_repetition_penalty_pushes_every_seen_token_once(scores, history, penalty):
    before = scores.clone()
    result = penalise_repetition(scores, history, penalty)
    assert torch.equal(scores, before), "the logits handed in must stay"
    for old, new in zip(scores.tolist(), result.tolist(), strict=True):
        for i, value in enumerate(old):
            wanted = (
                value if i not in history else value / penalty if value > 0 else value * penalty
            )
            assert new[i] == pytest.approx(wanted, rel=1e-5)


def test_the_mask_id_is_never_sampled():
    logits = torch.zeros(1, 12)
    logits[0, MASK] = 50.0
    for options in ({}, {"temperature": 5.0}, {"repetition_penalty": 0.5}):
        tokens = {int(sampler(MASK, **options).sample(logits, i, [])) for i in range(40)}
        assert MASK not in tokens


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_draws_follow_the_tempered_softmax(temperature):
    logits = torch.tensor([1.5, 0.0, -1.0, 0.7, 2.0, -3.0])
    choose = sampler(temperature=temperature, seed=7)
    draws = 6000
    counts = Counter(choose.pick(logits, position, []) for position in range(draws))
    expected = (logits / temperature).softmax(-1) * draws
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected.tolist()))
    assert chi_square < 20.5, "5 degrees of freedom, one in a thousand"


def test_draws_follow_the_softmax_over_seeds_at_one_position():
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5])
    draws = 4000
    counts = Counter(
        sampler(temperature=1.0, seed=seed).pick(logits, 3, []) for seed in range(draws)
    )
    expected = logits.softmax(-1) * draws
    chi_square = sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected.tolist()))
    assert chi_square < 16.3, "3 degrees of freedom, one in a thousand"


def test_draws_of_neighbouring_positions_are_independent():
    logits = torch.zeros(2)
    choose = sampler(temperature=1.0, seed=1)
    tokens = [choose.pick(logits, position, []) for position in range(4000)]
    pairs = Counter(itertools.pairwise(tokens))
    chi_square = sum((pairs[a, b] - 1000) ** 2 / 1000 for a in (0, 1) for b in (0, 1))
    assert chi_square < 16.3


@given(
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 10**6),
    others=st.lists(st.integers(0, 200), max_size=90),
)
@settings(max_examples=60)
def test_noise_depends_on_seed_and_position_only(seed, position, others):
    logits = torch.zeros(1, 17)
    fresh = sampler(temperature=1.0, seed=seed).sample(logits, position, [])
    used = sampler(temperature=1.0, seed=seed)
    for other in others:
        used.sample(logits, other, [3, 4])
    assert torch.equal(used.sample(logits, position, [1, 2]), fresh)
    assert torch.equal(gumbel_noise(seed, position, 17), gumbel_noise(seed, position, 17))


def test_noise_differs_between_seeds_and_between_positions():
    rows = {
        tuple(gumbel_noise(seed, position, 5).tolist())
        for seed in range(9)
        for position in range(9)
    }
    assert len(rows) == 81


def test_noise_is_finite():
    noise = torch.cat([gumbel_noise(0, position, 5000) for position in range(50)])
    assert noise.isfinite().all()


def test_a_block_of_rows_is_sampled_like_its_rows_one_by_one():
    logits = torch.randn(6, 15)
    choose = sampler(temperature=0.9, top_p=0.9, seed=3)
    together = choose.sample(logits.clone(), 10, []).tolist()
    assert together == [choose.pick(row, 10 + i, []) for i, row in enumerate(logits)]


def one_hot_rows(*tokens):
    rows = torch.zeros(len(tokens), 12)
    rows[range(len(tokens)), list(tokens)] = 9.0
    return rows


VERIFICATIONS = {
    "none": ([3, 4, 5], [8, 4, 5], [3]),
    "first": ([3, 4, 5], [3, 8, 5], [3, 4]),
    "later match after a mismatch counts for nothing": ([3, 4, 5], [8, 8, 5], [3]),
    "all, and the token after": ([3, 4, 5, 6], [3, 4, 5], [3, 4, 5, 6]),
    "no draft": ([3], [], [3]),
}


@pytest.mark.parametrize(
    ("verifier", "draft", "accepted"), VERIFICATIONS.values(), ids=VERIFICATIONS
)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.1}, {"repetition_penalty": 1.01}])
def test_verification_accepts_the_matching_prefix_and_adds_the_verifiers_token(
    verifier, draft, accepted, options
):
    rows = one_hot_rows(*verifier)[: len(draft) + 1]
    found = verify.follow(sampler(**options), seen(rows), 5, DraftTree.line(draft), [1, 2])
    assert found[0] == accepted


def follow(rows, draft, **options):
    return verify.follow(sampler(**options), seen(rows.clone()), 0, DraftTree.line(draft), [])[0]


def seen(rows, likeliest=None):
    return Logits(likeliest, rows, torch.zeros(len(rows), 1), head=lambda _: (rows, rows))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=300))
def test_of_tied_tokens_the_first_is_chosen(scores):
    row = torch.tensor(scores).float()
    assert sampler().pick(row.clone(), 0, []) == scores.index(max(scores))


def test_a_draft_equal_to_one_of_two_tied_tokens_is_judged_as_ar_would_choose():
    rows = torch.zeros(2, 12)
    rows[:, [4, 6]] = 9.0
    chosen = sampler().pick(rows[0].clone(), 0, [])
    other = 4 + 6 - chosen
    assert len(follow(rows, [chosen])) == 2
    assert follow(rows, [other]) == [chosen]


def test_verification_penalises_tokens_accepted_before():
    """Token 3 wins twice without a penalty; with one, its second use loses to token 4."""
    rows = torch.zeros(2, 12)
    rows[:, 3], rows[:, 4] = 2.0, 1.5
    assert follow(rows, [3]) == [3, 3]
    assert follow(rows, [3], repetition_penalty=2.0) == [3, 4]


@given(
    draft=st.lists(st.integers(0, 4), max_size=6),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 0.7, 2.0]),
    penalty=st.sampled_from([1.0, 1.4]),
)
def test_verification_emits_what_picking_one_by_one_emits(draft, seed, temperature, penalty):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(len(draft) + 1, 5, generator=generator)
    choose = sampler(temperature=temperature, repetition_penalty=penalty, seed=seed)
    accepted = verify.follow(choose, seen(rows.clone()), 7, DraftTree.line(draft), [0])[0]
    one_by_one = []
    for i in range(len(draft) + 1):
        one_by_one.append(choose.pick(rows[i].clone(), 7 + i, [0, *one_by_one]))
        if i == len(draft) or one_by_one[i] != draft[i]:
            break
    assert accepted == one_by_one


@given(draft=st.lists(st.integers(0, 4), max_size=6), seed=st.integers(0, 1000))
def test_verification_needs_the_likeliest_tokens_alone(draft, seed):
    rows = torch.randn(len(draft) + 1, 5, generator=torch.Generator().manual_seed(seed))
    choose, tree = sampler(), DraftTree.line(draft)
    from_tokens = seen(torch.empty(0, 0), rows.argmax(1).tolist())
    assert choose.asks(range(len(rows))) == {"likeliest": range(len(rows)), "logits": ()}
    expected = verify.follow(choose, seen(rows), 7, tree, [0])
    assert verify.follow(choose, from_tokens, 7, tree, [0]) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"logprobs": 2},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"min_tokens": 2},
        {"logit_bias": ((3, 1.0),)},
    ],
)
def test_what_needs_all_logits_asks_for_them(options):
    assert sampler(**options).asks((0, 2)) == {"likeliest": (), "logits": (0, 2)}


def test_a_forced_token_is_decided_whatever_is_likeliest():
    asked = Sampler(GenerationOptions(max_thinking_tokens=1), None, 1, think_token_ids=(3, 4))
    found = seen(torch.empty(0, 0), [7])
    assert asked.decide(found, 0, 3, [1, 3, 2]) == 4
    assert asked.decide(found, 0, 3, [1, 3, 4]) == 7


def test_frequency_and_presence_penalties_by_hand():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    found = penalise_frequency(logits, [1, 3, 3], 0.5, 0.25)
    assert found.tolist() == [[1.0, 2.0 - 0.75, 3.0, 4.0 - 1.25]]
    assert logits.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_penalties_count_the_answer_not_the_prompt():
    asked = sampler(prompt_length=2, presence_penalty=2.0)
    row = torch.tensor([0.0, 3.0, 2.0])
    assert asked.pick(row.clone(), 2, [1, 1]) == 1
    assert asked.pick(row.clone(), 3, [1, 1, 1]) == 2


def test_logit_bias_moves_a_choice():
    row = torch.tensor([0.0, 3.0, 2.0])
    asked = sampler()
    asked.options = GenerationOptions().updated({"logit_bias": {"2": 1.5, "1": -0.25}})
    assert asked.pick(row, 0, []) == 2
