"""`auto` emits AR's tokens, whatever it does on the way."""

from dataclasses import replace

import pytest
import torch
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
    for seed in range(2):
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


class Guesser:
    """A draft head that guesses the scripted answer, or anything."""

    vocab_size = 31
    tokens = torch.arange(28)

    def __init__(self, seed: int, dim: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(dim, 28, generator=generator)

    def tree(self, *_):
        return None

    def step(self, state, token):
        state = state.roll(1) + token
        return state, 0.1 * state @ self.weight


@pytest.mark.parametrize("costs", COSTS.values(), ids=COSTS)
@pytest.mark.parametrize("options", SAMPLED.values(), ids=SAMPLED)
def test_a_head_of_random_weights_changes_no_text(options, costs):
    for seed in range(2):
        model = agreeable(seed)
        expected = model.generate(PROMPT, max_tokens=48, **options).tokens
        head = Guesser(seed, model.model.config.hidden_size)
        found = decode(replace(model.model, draft_head=head), costs, max_tokens=48, **options)
        assert found.tokens == expected


class Knowing:
    """A draft head that knows the answer."""

    vocab_size = 31
    tokens = torch.arange(28)

    def __init__(self, text) -> None:
        self.text = text

    def tree(self, *_):
        return None

    def step(self, state, _):
        """A state is the place of the token; the model's own states do not say it."""
        place = int(state[0]) + 1 if len(state) == 1 else self.place
        logits = torch.full((28,), -9.0)
        logits[self.text[place + 1]] = 9.0
        return torch.tensor([place]), logits


def test_a_head_that_is_right_is_used_where_rows_are_dear():
    model = agreeable(2)
    answer = model.generate(PROMPT, max_tokens=60).tokens
    head = Knowing([*PROMPT, *answer, *[0] * 20])
    engine = Engine(replace(model.model, draft_head=head), costs=LAPTOP)
    sequence = engine.add(PROMPT, GenerationOptions(mode="auto", max_tokens=60))
    while engine.busy:
        head.place = len(PROMPT) + len(sequence.tokens)  # of the token about to come
        engine.step()
    assert sequence.tokens == answer
    assert sequence.stats.plans["head"] > 5
    assert sequence.stats.nfe < 30
