"""`auto` emits AR's tokens, whatever it does on the way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.modes.test_lossless import PROMPT, SAMPLED, agreeable
from tests.reference.scripted import scripted, speculative
from tests.reference.tiny import tiny
from trimode.config import GenerationOptions
from trimode.decoding import CostCurve
from trimode.engine import Engine, drain

FLAT = CostCurve((1, 128), (1.0, 1.01), (1.0, 1.01))
LAPTOP = CostCurve((1, 8, 128), (1.0, 1.2, 9.0), (1.0, 1.3, 10.0))
STEEP = CostCurve((1, 128), (1.0, 128.0), (1.0, 128.0))
COSTS = {"flat": FLAT, "laptop": LAPTOP, "steep": STEEP}


def decode(model, costs, prompt=PROMPT, **options):
    engine = Engine(model, costs=costs)
    sequence = engine.add(prompt, GenerationOptions(mode="auto", **options))
    for _ in drain(engine):
        pass
    return sequence


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
def test_it_emits_exactly_the_ar_tokens(options, costs):
    for seed in range(3):
        model = agreeable(seed)
        expected = model.generate(PROMPT, max_tokens=48, **options).tokens
        for block_length in (2, 8, 32):
            found = decode(model.model, costs, max_tokens=48, block_length=block_length, **options)
            assert found.tokens == expected


def test_it_does_what_the_machine_suggests():
    model = scripted(speculative(lambda position: True))
    kinds = {name: set(decode(model, c, max_tokens=60).stats.plans) for name, c in COSTS.items()}
    assert "quadratic" in kinds["flat"]
    assert "linear" in kinds["laptop"]
    assert kinds["steep"] <= {"ar", "lookup"}


@given(
    right=st.lists(st.booleans(), min_size=126, max_size=126),
    speeds=st.lists(st.floats(0.5, 3), min_size=4, max_size=4),
    block_length=st.integers(1, 12),
    max_tokens=st.integers(1, 50),
)
@settings(max_examples=80, deadline=None)
def test_any_machine_and_any_luck(right, speeds, block_length, max_tokens):
    model = scripted(speculative(right.__getitem__))
    times = tuple(sum(speeds[: i + 1]) for i in range(4))
    costs = CostCurve((1, 4, 16, 64), times, times)
    expected = Engine(model)
    reference = expected.add(PROMPT, GenerationOptions(max_tokens=max_tokens))
    for _ in drain(expected):
        pass
    found = decode(model, costs, max_tokens=max_tokens, block_length=block_length)
    assert found.tokens == reference.tokens
    assert sum(found.stats.plans.values()) == found.stats.nfe - 1, "the first token needs no plan"


def test_repeated_text_is_taken_from_the_context():
    """The script counts up modulo a few tokens, so its own answer repeats."""
    model = agreeable(1)
    answer = model.generate(PROMPT, max_tokens=40).tokens
    prompt = (*PROMPT, *answer, *PROMPT)
    found = decode(model.model, LAPTOP, prompt=prompt, max_tokens=30)
    assert found.tokens == model.generate(prompt, max_tokens=30).tokens


def test_a_model_that_cannot_draft_decodes_as_ar():
    model = tiny("llama", 1, eos=(), trained=False)
    found = decode(model.model, FLAT, max_tokens=20)
    assert set(found.stats.plans) <= {"ar", "lookup"}
    assert found.tokens == model.generate(PROMPT, max_tokens=20).tokens


def test_ends_at_the_context_limit_like_ar():
    model = tiny("llama", 3, eos=(), max_position_embeddings=40)
    for costs in COSTS.values():
        found = decode(model.model, costs, max_tokens=100)
        assert found.tokens == model.generate(PROMPT, max_tokens=100).tokens
