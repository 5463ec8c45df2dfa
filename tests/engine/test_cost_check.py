"""Doubts about a cost curve, from passes with synthetic times."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimode.decoding import CostCurve
from trimode.engine.cost_check import LIMIT, PASSES, SECONDS, VERDICTS, CostCheck, TimedPass

CURVE = CostCurve((1, 4, 16, 64, 128), (1.0, 1.2, 2.0, 6.0, 12.0), (1.1, 1.4, 2.5, 8.0, 16.0), 0.1)
MIXES = {
    "ar": [1] * 64 + [40],
    "drafts of two": [3, 2] * 16 + [40],
    "drafts of two and many": [3, 2, 9, 12] * 8,
    "half and half": [1, 16],
    "lookups now and then": [1] * 20 + [9],
}
"""Rows of passes, repeated: prompts come once a request."""


def run(check, mix, seconds_of, *, passes=6000, clock=0.0, noise=0.05, seed=0, **fields):
    """Have a curve checked by passes with given times; returns the clock after them."""
    dice = random.Random(seed)
    for i in range(passes):
        rows = mix[i % len(mix)]
        drafting = rows == 3
        seconds = seconds_of(rows, drafting, clock) * dice.lognormvariate(0, noise)
        clock += 0.02
        facts = {"sequences": 1, "context": 100.0, "waited": 0.0, **fields}
        check.observe(TimedPass(rows=rows, drafting=drafting, seconds=seconds, at=clock, **facts))
    return clock


def true(rows, drafting, _):
    return CURVE.seconds(rows, drafting=drafting)


def distorted(exponent):
    """Passes whose cost rises with their rows by another law than the curve's."""
    return lambda rows, drafting, clock: true(rows, drafting, clock) * rows**exponent


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@given(
    scale=st.floats(1e-3, 1e3),
    noise=st.floats(0, 0.2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_a_machine_that_is_faster_or_slower_as_a_whole_raises_no_doubt(mix, scale, noise, seed):
    check = CostCheck(CURVE)
    run(check, mix, lambda *facts: scale * true(*facts), noise=noise, seed=seed)
    assert check.doubt is None


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
@given(
    exponent=st.sampled_from([-0.9, -0.5, 0.5, 1.0]),
    scale=st.floats(1e-2, 1e2),
    noise=st.floats(0, 0.15),
    seed=st.integers(0, 1000),
)
@settings(max_examples=15)
def test_a_wrong_shape_is_doubted_whatever_the_scale(mix, exponent, scale, noise, seed):
    check, law = CostCheck(CURVE), distorted(exponent)
    rows = sorted({*mix})
    if (rows[-1] / rows[0]) ** abs(exponent) < 1.5 * LIMIT:
        return
    run(check, mix, lambda *facts: scale * law(*facts), noise=noise, seed=seed, passes=9000)
    assert check.doubt is not None
    assert "times as long" in check.doubt


def test_the_words_name_both_sizes_and_the_factor():
    check = CostCheck(CURVE)
    run(check, [1, 16], lambda rows, *_: 1.0 if rows == 1 else 8.0, noise=0.0)
    assert (
        check.doubt
        == "passes of 9 to 16 rows take 4 times as long, beside passes of 1 row, as was measured"
    )


def test_a_difference_that_changes_no_decision_is_left():
    check = CostCheck(CURVE)
    run(check, [1, 16], lambda rows, *_: 1.0 if rows == 1 else 2.0 * 1.3)
    assert check.doubt is None


@given(
    begins=st.floats(0, 60),
    lasts=st.floats(0, SECONDS * 0.9),
    factor=st.floats(1, 20),
    only_large=st.booleans(),
)
@settings(max_examples=40)
def test_a_neighbour_that_goes_again_raises_no_doubt(begins, lasts, factor, only_large):
    def seconds(rows, drafting, clock):
        disturbed = begins <= clock < begins + lasts and (rows > 1 or not only_large)
        return true(rows, drafting, clock) * (factor if disturbed else 1)

    check, clock = CostCheck(CURVE), 0.0
    while clock < begins + lasts + SECONDS:
        clock = run(check, MIXES["half and half"], seconds, passes=100, clock=clock)
        assert check.doubt is None


@given(seed=st.integers(0, 100))
@settings(max_examples=20)
def test_single_disturbances_raise_no_doubt(seed):
    dice = random.Random(seed)

    def seconds(*facts):
        return true(*facts) * (30 if dice.random() < 0.1 else 1)

    check = CostCheck(CURVE)
    run(check, MIXES["drafts of two"], seconds)
    assert check.doubt is None


def test_doubt_needs_many_passes_and_some_time():
    check, at = CostCheck(CURVE), 0.0
    fields = {"sequences": 1, "drafting": False, "context": 9.0, "waited": 0.0}
    count = 0
    while check.doubt is None:
        for rows, seconds in ((1, 1.0), (16, 20.0)):
            at += 0.1
            check.observe(TimedPass(rows=rows, seconds=seconds, at=at, **fields))
            count += 1
    assert at >= SECONDS
    assert count >= PASSES * VERDICTS


def test_passes_that_agree_again_end_the_doubt():
    check = CostCheck(CURVE)
    clock = run(check, [1, 16], distorted(0.5))
    assert check.doubt is not None
    run(check, [1, 16], true, clock=clock)
    assert check.doubt is None


@pytest.mark.parametrize(
    "fields", [{"waited": 0.5}, {"context": 4000.0}], ids=["neighbours", "a long context"]
)
def test_passes_that_the_curve_says_nothing_of_are_left_out(fields):
    check = CostCheck(CURVE)
    run(check, [1, 16], distorted(1.0), **fields)
    assert check.doubt is None


def test_prompts_of_many_rows_are_left_out():
    check = CostCheck(CURVE)
    run(check, [1, 500], distorted(1.0))
    assert check.doubt is None


def test_passes_of_many_sequences_are_compared_with_what_these_add():
    check = CostCheck(CURVE)
    run(
        check,
        [8, 64],
        lambda rows, drafting, _: CURVE.seconds(rows, sequences=8, drafting=drafting),
        sequences=8,
    )
    assert check.doubt is None
