"""NFE, tokens per forward and acceptance on runs counted by hand."""

import pytest

from tests.reference.scripted import peaked, scripted, speculative
from tests.reference.tiny import MASK, run_alone
from trimode.config import GenerationOptions
from trimode.decoding import Stats
from trimode.engine import Engine, GenerationResult, drain

PROMPT = [9, 8, 11]


def run(right, **options):
    """`right` holds the offsets into the answer at which drafts are right."""
    script = speculative(lambda position: position - len(PROMPT) in right)
    return run_alone(scripted(script), PROMPT, **options).stats


def test_ar_makes_one_pass_a_token():
    stats = run((), max_tokens=7)
    assert dict(stats.passes) == {"prefill": 1, "decode": 6}
    assert (stats.nfe, stats.completion_tokens, stats.tokens_per_forward) == (7, 7, 1.0)
    assert stats.acceptance_length is None


def test_linear_with_all_drafts_right():
    """1 token from the prefill, then 5, 5 and the last 2 of 13: three cycles."""
    stats = run(range(40), mode="linear", block_length=5, max_tokens=13)
    assert dict(stats.passes) == {"prefill": 1, "draft": 3, "verify": 3}
    assert stats.nfe == 7
    assert stats.tokens_per_forward == pytest.approx(13 / 7)
    assert (stats.cycles, stats.cycle_tokens) == (3, 12)
    assert stats.acceptance_length == 4.0


def test_linear_with_no_draft_right():
    stats = run((), mode="linear", block_length=5, max_tokens=5)
    assert dict(stats.passes) == {"prefill": 1, "draft": 4, "verify": 4}
    assert stats.nfe == 9
    assert stats.acceptance_length == 1.0


def test_linear_with_some_drafts_right():
    """Offset 0 is the prefill's. Cycle 1 drafts 1 to 4: 1, 2 right, 3 wrong: 1, 2, 3 come out.
    Cycle 2 drafts 4 to 7: 4 wrong: 4. Cycle 3 drafts 5 to 8: 5, 6 right: 5, 6, 7."""
    stats = run((1, 2, 5, 6), mode="linear", block_length=5, max_tokens=8)
    assert (stats.nfe, stats.cycles, stats.cycle_tokens) == (1 + 2 * 3, 3, 7)
    assert stats.acceptance_length == pytest.approx(7 / 3)


def test_linear_with_a_threshold_counts_every_draft_pass():
    """Drafts are 0.8 sure: at a bar of 0.9 each of four masks takes a pass of its own."""
    stats = run(range(40), mode="linear", block_length=5, max_tokens=6, threshold=0.9)
    assert dict(stats.passes) == {"prefill": 1, "draft": 4, "verify": 1}
    assert stats.nfe == 6


def test_quadratic_with_all_drafts_right():
    """1 token from the prefill, then 5 a pass."""
    stats = run(range(40), mode="quadratic", block_length=5, max_tokens=11)
    assert dict(stats.passes) == {"prefill": 1, "verify": 2}
    assert stats.nfe == 3
    assert (stats.cycles, stats.cycle_tokens, stats.acceptance_length) == (2, 10, 5.0)


def test_quadratic_with_no_draft_right():
    stats = run((), mode="quadratic", block_length=5, max_tokens=6)
    assert dict(stats.passes) == {"prefill": 1, "verify": 5}
    assert stats.tokens_per_forward == 1.0
    assert stats.acceptance_length == 1.0


def test_quadratic_with_some_drafts_right():
    """The draft after n tokens is n, verified already, then n + 1 to n + 4: as with linear."""
    stats = run((1, 2, 5, 6), mode="quadratic", block_length=5, max_tokens=8)
    assert (stats.nfe, stats.cycles, stats.cycle_tokens) == (1 + 3, 3, 7)


def test_diffusion_at_a_bar_of_one_makes_as_many_passes_as_tokens_and_the_prefill():
    """Per block of 4: three masks, one a pass, and the closing pass."""
    stats = run(range(40), mode="diffusion", block_length=4, max_tokens=12, threshold=1.0)
    assert dict(stats.passes) == {"prefill": 1, "denoise": 9, "close": 3}
    assert stats.nfe == 13
    assert stats.acceptance_length is None


def test_diffusion_at_a_bar_of_zero_makes_two_passes_a_block():
    stats = run(range(40), mode="diffusion", block_length=4, max_tokens=12, threshold=0.0)
    assert dict(stats.passes) == {"prefill": 1, "denoise": 3, "close": 3}
    assert stats.tokens_per_forward == pytest.approx(12 / 7)


def test_a_block_of_one_seeded_token_needs_no_denoising():
    stats = run((), mode="diffusion", block_length=1, max_tokens=3)
    assert dict(stats.passes) == {"prefill": 1, "close": 3}


def test_an_answer_of_one_token_costs_one_pass_in_every_mode_but_diffusion():
    for mode in (
        {"mode": "ar"},
        *({"mode": m, "block_length": 8} for m in ("linear", "quadratic")),
    ):
        assert run((), max_tokens=1, **mode).nfe == 1
    assert run((), mode="diffusion", max_tokens=1).nfe == 2


def test_the_stop_token_counts_as_a_completion_token():
    def script(row):
        return peaked(2 if row.position >= len(PROMPT) + 1 else 10, 0.9)

    stats = run_alone(scripted(script, eos=(2,)), PROMPT, max_tokens=9).stats
    assert stats.completion_tokens == 3


def test_a_cut_cycle_counts_the_tokens_that_came_out():
    stats = run(range(40), mode="linear", block_length=8, max_tokens=4)
    assert (stats.completion_tokens, stats.cycles, stats.cycle_tokens) == (4, 1, 3)


def test_times_are_in_order():
    engine = Engine(scripted(speculative(lambda _: True)))
    sequence = engine.add(PROMPT, GenerationOptions(max_tokens=5))
    for _ in drain(engine):
        pass
    stats = sequence.stats
    assert stats.admitted_at <= stats.first_token_at <= stats.finished_at
    assert stats.seconds == stats.finished_at - stats.admitted_at
    assert stats.tokens_per_second == pytest.approx(5 / stats.seconds)


def test_empty_stats_divide_by_nothing():
    stats = Stats()
    assert stats.tokens_per_forward == stats.seconds == stats.tokens_per_second == 0.0
    assert stats.acceptance_length is stats.time_to_first_token is None


def test_the_json_report_agrees_with_the_counters():
    def script(row):
        position = row.position if row.token == MASK else row.position + 1
        return peaked(8 + position % 10, 0.9)

    sequence = run_alone(
        scripted(script), PROMPT, mode="linear", block_length=5, max_tokens=13, logprobs=1
    )
    report = GenerationResult.of(sequence, "scripted").to_json()
    assert report["nfe"] == 7
    assert report["tokens_per_forward"] == round(13 / 7, 4)
    assert report["acceptance_length"] == 4.0
    assert report["completion_tokens"] == len(report["token_ids"]) == 13
    assert report["prompt_tokens"] == 3
    assert report["finish_reason"] == "length"
    assert [entry["token"] for entry in report["logprobs"]] == report["token_ids"]
    assert all(entry["top"][0][1] == entry["logprob"] for entry in report["logprobs"])
