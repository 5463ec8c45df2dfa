"""Token shift: the same decoding, read one row earlier."""

import pytest

from tests.reference.scripted import scripted, speculative
from trimode.config import GenerationOptions
from trimode.decoding import CostCurve
from trimode.engine import Engine, drain

PROMPT = (3, 1, 4, 1, 5, 8, 2, 6)
RIGHT = {
    "all": lambda position: True,
    "none": lambda position: False,
    "some": lambda position: position % 5 != 0,
}
MODES = {
    "linear": {"mode": "linear"},
    "linear, several passes": {"mode": "linear", "threshold": 0.9},
    "linear ahead": {"mode": "linear", "seed_block": False},
    "linear ahead, tree": {"mode": "linear", "seed_block": False, "draft_tree": True},
    "linear ahead, several passes": {"mode": "linear", "seed_block": False, "threshold": 0.9},
    "quadratic": {"mode": "quadratic"},
    "quadratic, tree": {"mode": "quadratic", "draft_tree": True},
    "fixed block": {"mode": "diffusion", "threshold": 0.5},
    "fixed block, one a pass": {"mode": "diffusion", "threshold": 0.95},
    "fixed block, revision": {"mode": "diffusion", "threshold": 0.5, "revision_threshold": 0.5},
    "auto": {"mode": "auto"},
    "rolling block": {"mode": "diffusion", "rolling_block": True, "threshold": 0.5},
    "spare drafts": {
        "mode": "diffusion",
        "rolling_block": True,
        "threshold": 0.5,
        "spare_drafts": 2,
    },
}


def decode(right, *, trained, read, **options):
    """Decode a model of one form as if it had the form `read`."""
    model = scripted(speculative(right, token_shift=trained), token_shift=read)
    options = {"block_length": 6, "max_tokens": 23, "ignore_eos": True, **options}
    engine = Engine(model, costs=CostCurve((1, 128), (1.0, 1.01), (1.0, 1.01)))
    sequence = engine.add(PROMPT, GenerationOptions(**options))
    for _ in drain(engine):
        pass
    return sequence


@pytest.mark.parametrize("right", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_model_of_either_form_makes_the_same_tokens_in_the_same_passes(options, right):
    plain = decode(right, trained=False, read=False, **options)
    shifted = decode(right, trained=True, read=True, **options)
    assert shifted.tokens == plain.tokens
    assert shifted.stats.passes == plain.stats.passes


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_the_rows_of_the_other_form_are_no_use(options):
    """Without this the test above could not fail."""
    known = decode(RIGHT["all"], trained=True, read=True, **options)
    misread = decode(RIGHT["all"], trained=True, read=False, **options)
    worse = misread.stats.nfe > known.stats.nfe
    assert worse or misread.tokens != known.tokens


def test_a_fixed_block_begins_with_the_token_of_ar_whether_or_not_it_is_seeded():
    """The row before the block predicts its first token: AR's own."""
    options = {"mode": "diffusion", "threshold": 0.5}
    seeded, unseeded = (
        decode(RIGHT["some"], trained=True, read=True, seed_block=seed, **options)
        for seed in (True, False)
    )
    assert seeded.tokens == unseeded.tokens
    assert seeded.stats.passes == unseeded.stats.passes
