"""Every default of a request is resolved in one place, and nothing given is ignored in silence."""

import itertools

import pytest

from tests.reference.tiny import random_adapter, tiny
from trimode.config import (
    COMMIT_RULES,
    DECODING_FIELDS,
    DEFAULT_THRESHOLD,
    LED_REVISION_THRESHOLD,
    LED_THRESHOLD,
    MODES,
    ROLLING_THRESHOLD,
    GenerationOptions,
)
from trimode.decoding import MODE_SPECS, RULES, inherited, modes_reading
from trimode.engine.request import resolve
from trimode.errors import InputError

PROMPT = (3, 1, 4)
GIVEN = {
    "block_length": 4,
    "commit_rule": "quota",
    "threshold": 0.5,
    "max_denoising_steps": 2,
    "revision_threshold": 0.1,
    "seed_block": True,
    "draft_tree": True,
    "rolling_block": True,
    "spare_drafts": 2,
    "show_drafts": True,
}
"""Each decoding option with a value that differs from one that is not given."""


def model(form="seeded", **fields):
    if form == "seeded":
        return tiny("llama", eos=(), **fields).model
    adapter = random_adapter(tiny("llama").config, scope="denoise")
    return tiny("llama", eos=(), adapter=adapter, **fields).model


def resolved(form="seeded", **options):
    return resolve(model(form), PROMPT, GenerationOptions(**options))


def refused(form="seeded", **options):
    with pytest.raises(InputError) as caught:
        resolved(form, **options)
    return caught.value


def test_the_list_of_options_is_complete():
    assert set(GIVEN) == set(DECODING_FIELDS) - {"mode"}
    assert set(MODE_SPECS) == set(MODES)
    assert tuple(RULES) == COMMIT_RULES
    for name, value in GIVEN.items():
        assert getattr(GenerationOptions(), name) != value


@pytest.mark.parametrize(("mode", "name"), [*itertools.product(MODES, GIVEN)])
def test_an_option_that_a_mode_does_not_read_is_refused_with_the_modes_name(mode, name):
    if mode in modes_reading(name):
        return  # accepted ones are the next test's
    error = refused(mode=mode, **{name: GIVEN[name]})
    assert error.field == name
    assert mode in error.found
    for other in modes_reading(name):
        assert other in error.allowed


LED_ONLY = {"linear": {"draft_tree"}, "diffusion": {"spare_drafts"}}
"""A tree needs a led draft, and a block rolls by default in models that make those; see below."""


@pytest.mark.parametrize(("mode", "name"), [*itertools.product(MODES, GIVEN)])
def test_an_option_that_a_mode_reads_reaches_its_decoder(mode, name):
    if mode not in modes_reading(name):
        return
    more = {}
    if mode == "linear" and name == "max_denoising_steps":
        more = {"threshold": 0.9}
    form = "led" if name in LED_ONLY.get(mode, ()) else "seeded"
    context = resolved(form, mode=mode, **{name: GIVEN[name]}, **more)
    assert getattr(context, name) == GIVEN[name]


def test_what_a_mode_does_not_read_is_not_inherited():
    defaults = GenerationOptions(mode="diffusion", temperature=0.5, threshold=0.7, block_length=8)
    for_ar = inherited(defaults, "ar")
    assert for_ar == GenerationOptions(mode="ar", temperature=0.5)
    assert inherited(defaults, "linear_spec") == GenerationOptions(
        mode="linear", temperature=0.5, threshold=0.7, block_length=8
    )
    with pytest.raises(InputError, match="mode: 'sideways'"):
        inherited(defaults, "sideways")


def test_a_bar_does_not_go_over_to_another_rule():
    options = GenerationOptions(mode="diffusion", threshold=0.9)
    assert options.updated({"commit_rule": "entropy"}).threshold is None
    assert options.updated({"commit_rule": "entropy", "threshold": 0.5}).threshold == 0.5
    assert options.updated({"block_length": 4}).threshold == 0.9


@pytest.mark.parametrize("rule", COMMIT_RULES)
@pytest.mark.parametrize("rolling", [False, True])
def test_each_rule_has_its_own_bar(rule, rolling):
    if rule == "learned":
        return  # needs a checkpoint that brings one
    context = resolved(mode="diffusion", commit_rule=rule, rolling_block=rolling)
    expected = ROLLING_THRESHOLD if rolling and rule == "threshold" else RULES[rule].threshold
    assert context.threshold == expected
    assert context.commit_rule == rule


def test_diffusion_has_the_form_of_the_checkpoint():
    fixed, rolling = resolved(mode="diffusion"), resolved("led", mode="diffusion")
    assert (fixed.rolling_block, fixed.threshold) == (False, DEFAULT_THRESHOLD)
    assert (fixed.revision_threshold, fixed.seed_block) == (0.0, True)
    assert (rolling.rolling_block, rolling.threshold) == (True, ROLLING_THRESHOLD)
    assert rolling.revision_threshold == LED_REVISION_THRESHOLD
    led = resolved("led", mode="diffusion", rolling_block=False)
    like_nld = resolved("led", mode="diffusion", seed_block=False)
    assert (led.rolling_block, led.led_blocks) == (False, True)
    assert (led.threshold, led.revision_threshold) == (LED_THRESHOLD, LED_REVISION_THRESHOLD)
    assert (like_nld.rolling_block, like_nld.led_blocks) == (False, False)


def test_linear_has_the_form_of_the_checkpoint():
    seeded, led = resolved(mode="linear"), resolved("led", mode="linear")
    assert (seeded.seed_block, seeded.draft_tree, seeded.one_pass) == (True, False, True)
    assert (led.seed_block, led.draft_tree, led.one_pass) == (False, True, True)
    assert not resolved("led", mode="linear", seed_block=True).draft_tree
    assert not resolved("led", mode="linear", threshold=0.9).draft_tree
    assert resolved(mode="linear", threshold=0.0).one_pass
    assert not resolved(mode="linear", threshold=0.9).one_pass
    entropy = resolved(mode="linear", commit_rule="entropy")
    assert (entropy.one_pass, entropy.threshold) == (False, RULES["entropy"].threshold)


@pytest.mark.parametrize("mode", ["quadratic", "auto"])
def test_trees_are_for_models_that_draft_in_the_led_form(mode):
    options = GenerationOptions(mode=mode)
    for form, tree in (("seeded", False), ("led", True)):
        assert resolve(model(form), PROMPT, options).draft_tree == tree


@pytest.mark.parametrize(
    ("form", "options", "field"),
    [
        ("seeded", {"mode": "linear", "max_denoising_steps": 2}, "max_denoising_steps"),
        ("seeded", {"mode": "linear", "draft_tree": True}, "draft_tree"),
        ("led", {"mode": "linear", "draft_tree": True, "grammar": "{}"}, "draft_tree"),
        ("seeded", {"mode": "linear", "commit_rule": "quota", "threshold": 0.5}, "threshold"),
        ("led", {"mode": "diffusion", "commit_rule": "quota", "threshold": 0.5}, "threshold"),
        ("led", {"mode": "linear", "draft_tree": True, "threshold": 0.9}, "draft_tree"),
        (
            "seeded",
            {"mode": "diffusion", "rolling_block": True, "seed_block": True},
            "seed_block",
        ),
        (
            "seeded",
            {"mode": "diffusion", "rolling_block": True, "max_denoising_steps": 2},
            "max_denoising_steps",
        ),
        ("seeded", {"mode": "diffusion", "spare_drafts": 2}, "spare_drafts"),
        ("led", {"mode": "diffusion", "spare_drafts": 2, "revision_threshold": 0}, "spare_drafts"),
    ],
)
def test_an_option_without_effect_beside_the_others_is_refused(form, options, field):
    error = refused(form, **options)
    assert error.field == field
    assert options["mode"] in error.found or "grammar" in error.found
