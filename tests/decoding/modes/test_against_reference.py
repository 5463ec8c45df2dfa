"""Every mode against the slow reference: same tokens, same number of passes.

Many random models, prompts, block lengths and budgets. Where the reference took a decision by a
hair (two logits closer than 1e-4, a probability within 2e-6 of the bar) rounding may flip it: such
a case is counted instead of compared, and the count has to stay tiny.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.reference import nld
from tests.reference.options import readable
from tests.reference.tiny import MASK, tiny

FAMILIES = ("llama", "ministral3", "qwen3")
BLOCK_LENGTHS = (1, 2, 5, 8, 16, 32)
THRESHOLDS = (0.0, 0.3, 0.9, None)
"""None: the quota rule."""
NEAR_TIE = 1e-4


@dataclass
class Tally:
    """What the compared cases were like, so that a test can say it saw all kinds."""

    compared: int = 0
    near_ties: int = 0
    reasons: Counter = field(default_factory=Counter)

    def compare(self, case, request, expected, sequence):
        if min(request.margins) < NEAR_TIE:
            self.near_ties += 1
            return
        self.compared += 1
        assert (sequence.tokens, sequence.stats.nfe) == expected, case
        stopped = sequence.tokens[-1] in request.eos
        assert sequence.finish_reason == ("stop" if stopped else "length"), case
        self.reasons[sequence.finish_reason] += 1

    def check(self):
        assert self.near_ties <= max(2, 0.08 * self.compared), f"{self.near_ties} near ties"
        assert self.reasons["stop"], "no case ended at an EOS"
        assert self.reasons["length"], "no case ended at its budget"


def random_case(rng, family, block_lengths=BLOCK_LENGTHS, **fields):
    """A model, and a request to its reference form."""
    seed = rng.randrange(6)
    model = tiny(
        family,
        seed,
        vocab=rng.choice((13, 31)),
        sharpness=rng.choice((3.0, 8.0)),
        common=rng.choice((0.0, 0.5)),
        eos=tuple(rng.sample(range(8, 13), 3)),
        **fields,
    )
    prompt = [rng.randrange(model.config.vocab_size) for _ in range(rng.randint(1, 40))]
    request = nld.Request(
        model.forward,
        prompt,
        max_tokens=rng.choice((1, 2, 7, 13, 24, 37)),
        mask_id=MASK,
        eos=frozenset(model.config.eos_token_ids),
        block_length=rng.choice(block_lengths),
    )
    return model, request


def run(model, request, mode, **options):
    options = readable(mode, block_length=request.block_length, **options)
    return model.generate(request.prompt, max_tokens=request.max_tokens, **options)


def check_ar(family, cases, salt=0):
    rng, tally = random.Random(f"ar-{family}-{salt}"), Tally()
    for _ in range(cases):
        model, request = random_case(rng, family)
        tally.compare(request, request, nld.ar(request), run(model, request, "ar"))
    tally.check()


def check_diffusion(family, threshold, cases, salt=0):
    rng, tally = random.Random(f"diffusion-{family}-{threshold}-{salt}"), Tally()
    for _ in range(cases):
        model, request = random_case(rng, family)
        seeded = rng.random() < 0.7
        steps = rng.choice((None, None, 2, 6)) if threshold is None else None
        revision = rng.choice((0.0, 0.0, 0.05, 0.3))
        expected = nld.diffusion(
            request, threshold=threshold, seeded=seeded, steps=steps, revision=revision
        )
        rule = (
            {"commit_rule": "quota"}
            if threshold is None
            else {"commit_rule": "threshold", "threshold": threshold}
        )
        sequence = run(
            model,
            request,
            "diffusion",
            seed_block=seeded,
            max_denoising_steps=steps,
            revision_threshold=revision,
            **rule,
        )
        tally.compare((request, seeded, steps, revision), request, expected, sequence)
    tally.check()


def check_fixed_led(family, threshold, cases, salt=0):
    rng, tally = random.Random(f"led-{family}-{threshold}-{salt}"), Tally()
    for _ in range(cases):
        model, request = random_case(rng, family, (1, 2, 5, 8), draft_form="led")
        revision, steps = rng.choice((0.0, 0.05, 0.3)), rng.choice((None, 1, 2))
        expected = nld.fixed_led(request, threshold=threshold, revision=revision, steps=steps)
        options = {"threshold": threshold, "revision_threshold": revision}
        sequence = run(
            model,
            request,
            "diffusion",
            rolling_block=False,
            max_denoising_steps=steps,
            **options,
        )
        tally.compare((request, revision, steps), request, expected, sequence)
    tally.check()


def check_rolling(family, threshold, cases, salt=0):
    rng, tally = random.Random(f"rolling-{family}-{threshold}-{salt}"), Tally()
    for _ in range(cases):
        model, request = random_case(rng, family, (1, 2, 5, 8))
        revision = rng.choice((0.0, 0.05, 0.3))
        bars = {"threshold": threshold, "revision_threshold": revision}
        spare = rng.choice((0, 1, 3)) if revision else 0
        expected = nld.rolling(request, threshold=threshold, revision=revision, spare=spare)
        options = {**bars, "rolling_block": True, "spare_drafts": spare or None}
        sequence = run(model, request, "diffusion", **options)
        tally.compare((request, revision, spare), request, expected, sequence)
    tally.check()


def check_linear(family, threshold, cases, salt=0):
    rng, tally = random.Random(f"linear-{family}-{threshold}-{salt}"), Tally()
    block_lengths = BLOCK_LENGTHS if threshold == 0 else BLOCK_LENGTHS[:5]
    for _ in range(cases):
        model, request = random_case(rng, family, block_lengths)
        expected = nld.linear(request, threshold=threshold)
        sequence = run(model, request, "linear", threshold=threshold)
        tally.compare(request, request, expected, sequence)
    tally.check()


def check_quadratic(family, cases, salt=0):
    rng, tally = random.Random(f"quadratic-{family}-{salt}"), Tally()
    for _ in range(cases):
        model, request = random_case(rng, family, (1, 2, 5, 8, 16))
        tally.compare(request, request, nld.quadratic(request), run(model, request, "quadratic"))
    tally.check()


@pytest.mark.parametrize("family", FAMILIES)
def test_ar_emits_the_reference_tokens_in_as_many_passes(family):
    check_ar(family, 16)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_diffusion_emits_the_reference_tokens_in_as_many_passes(family, threshold):
    check_diffusion(family, threshold, 16)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_emits_the_reference_tokens_in_as_many_passes(family, threshold):
    check_linear(family, threshold, 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_quadratic_emits_the_reference_tokens_in_as_many_passes(family):
    check_quadratic(family, 16)


def test_quadratic_equals_the_reference_at_block_length_32():
    model = tiny("ministral3", 3, sharpness=8.0, eos=())
    request = nld.Request(model.forward, [3, 1, 4, 1, 5, 9], 9, MASK, block_length=32)
    expected = nld.quadratic(request)
    assert min(request.margins) > NEAR_TIE
    sequence = run(model, request, "quadratic")
    assert (sequence.tokens, sequence.stats.nfe) == expected


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_rolling_diffusion_emits_the_reference_tokens_in_as_many_passes(family, threshold):
    check_rolling(family, threshold, 16)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.4, 0.9])
@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_blocks_of_the_led_form_emit_the_reference_tokens_in_as_many_passes(
    family, threshold
):
    check_fixed_led(family, threshold, 16)


def test_default_threshold_of_diffusion_is_nine_tenths():
    model = tiny("llama", 2, sharpness=12.0)
    request = nld.Request(model.forward, [3, 1, 4, 1, 5], 40, MASK, block_length=16)
    by_bar = {bar: nld.diffusion(request, threshold=bar) for bar in (0.5, 0.9, 0.99)}
    assert len({nfe for _, nfe in by_bar.values()}) == 3, "the bars must make a difference"
    assert min(request.margins) > NEAR_TIE
    model = tiny("llama", 2, sharpness=12.0, eos=())
    sequence = run(model, request, "diffusion")
    assert (sequence.tokens, sequence.stats.nfe) == by_bar[0.9]


def test_block_length_defaults_to_the_checkpoints():
    model = tiny("llama", 2, eos=(), block_length=5)
    request = nld.Request(model.forward, [3, 1, 4], 14, MASK, block_length=5)
    expected = nld.diffusion(request, threshold=0.9)
    assert min(request.margins) > NEAR_TIE
    sequence = model.generate(request.prompt, mode="diffusion", max_tokens=14)
    assert (sequence.tokens, sequence.stats.nfe) == expected


@pytest.mark.slow
@pytest.mark.parametrize("salt", range(5))
@pytest.mark.parametrize("family", FAMILIES)
def test_all_modes_equal_the_reference_over_many_more_cases(family, salt):
    check_ar(family, 60, salt + 1)
    check_quadratic(family, 60, salt + 1)
    for threshold in THRESHOLDS:
        check_diffusion(family, threshold, 60, salt + 1)
    for threshold in (0.0, 0.3, 0.9):
        check_linear(family, threshold, 60, salt + 1)
