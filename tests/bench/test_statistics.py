"""Intervals against what is known of the distributions that figures are drawn from."""

import numpy as np
import pytest

from trimode.bench.answers import Answer, shares
from trimode.bench.quality import agreement, form_problem
from trimode.bench.statistics import Pair, mean, ratio_of_sums, speedup


def drawn(dice, count, true, noise=0.1, spread=1.0):
    """Prompts of very different lengths; a setting is `true` times as fast."""
    tokens = np.round(np.exp(dice.normal(4, spread, count))) + 1
    base = tokens / 100 * np.exp(dice.normal(0, noise, count))
    ours = tokens / 100 / true * np.exp(dice.normal(0, noise, count))
    rows = zip(tokens, base, tokens, ours, strict=True)
    return [Pair(*map(float, row)) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 20, 60])
@pytest.mark.parametrize("true", [0.7, 1.0, 1.6])
def test_an_interval_holds_the_truth_about_as_often_as_it_says(count, true):
    dice = np.random.default_rng(count)
    found = [speedup(drawn(dice, count, true)) for _ in range(200)]
    held = sum(i.low <= true <= i.high for i in found) / len(found)
    assert 0.85 <= held <= 0.99


def test_pairing_by_prompt_makes_intervals_narrow_although_prompts_differ_much():
    pairs = drawn(np.random.default_rng(0), 40, 1.2, noise=0.02)
    paired = speedup(pairs)
    alone = ratio_of_sums([p.tokens for p in pairs], [p.seconds * p.tokens for p in pairs])
    assert paired.high - paired.low < 0.05
    assert alone.high / alone.low > 1.2


def test_equal_pairs_have_an_interval_of_no_width():
    found = speedup([Pair(10, 1, 10, 0.5)] * 10)
    assert (found.estimate, found.low, found.high) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_prompts_have_an_estimate_and_no_bounds(count):
    found = speedup([Pair(10, 1, 10, 0.5)] * count)
    assert found.estimate == pytest.approx(2)
    assert (found.low, found.high, found.known, found.units) == (None, None, False, count)


def test_the_speed_is_of_all_tokens_and_not_a_mean_of_ratios():
    assert speedup([Pair(1, 1, 1, 0.1), Pair(99, 99, 99, 99)]).estimate == pytest.approx(100 / 99.1)


def test_a_mean_has_its_interval():
    found = mean([0.0, 1.0] * 50)
    assert found.estimate == 0.5
    assert found.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)


def test_shares_of_requests_in_flight_add_up_to_the_time():
    intervals = [(0.0, 4.0), (1.0, 2.0), (1.0, 4.0), (6.0, 7.0)]
    found = shares(intervals)
    assert found == pytest.approx([1 + 1 / 3 + 1, 1 / 3, 1 / 3 + 1, 1])
    assert sum(found) == pytest.approx(4 + 1)


def test_time_per_token_leaves_the_first_chunk_out():
    answer = Answer(prompt=0, sent=0, finished=3, chunks=[(1.0, 4), (2.0, 1), (3.0, 5)], tokens=10)
    assert (answer.ttft, answer.tpot) == (1.0, pytest.approx(2 / 6))
    unknown = Answer(prompt=0, sent=0, finished=3, chunks=[(1.0, None), (3.0, None)], tokens=5)
    assert unknown.tpot == pytest.approx(2 / 4)
    assert Answer(prompt=0, sent=0, finished=1, chunks=[(1.0, 4)], tokens=4).tpot is None


def test_agreement_is_by_place_and_over_the_longer_answer():
    def answer(*tokens, text=""):
        return Answer(prompt=0, sent=0, finished=1, token_ids=list(tokens), text=text)

    assert agreement(answer(1, 2, 3, 4), answer(1, 9, 3)) == 0.5
    assert agreement(answer(), answer()) == 1.0
    hidden = Answer(prompt=0, sent=0, finished=1, text="a b c d")
    assert agreement(hidden, answer(1, text="a b x d")) == 0.75


@pytest.mark.parametrize(
    ("text", "valid"), [('{"a": 1}', True), ("```json\n[1]\n```", True), ("{", False), ("", False)]
)
def test_json_may_stand_in_a_fence(text, valid):
    assert (form_problem(text, None) is None) == valid


def test_json_is_held_against_its_schema():
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    assert form_problem('{"city": "Oslo"}', schema) is None
    for wrong in ('{"city": 1}', "{}", "[]"):
        assert form_problem(wrong, schema) is not None
