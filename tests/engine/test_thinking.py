"""The thinking budget: `</think>` comes at the budget where the model has not written it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.scripted import peaked, scripted, speculative, spelled_cache
from tests.reference.tiny import MASK, THINK_END, run_alone, tiny
from trimode.config import GenerationOptions
from trimode.engine import Engine

MODES = {
    "ar": {"mode": "ar"},
    "linear": {"mode": "linear", "block_length": 4},
    "linear-all-masks": {"mode": "linear", "block_length": 4, "seed_block": False},
    "linear-threshold": {"mode": "linear", "block_length": 4, "threshold": 0.9},
    "quadratic": {"mode": "quadratic", "block_length": 4},
    "diffusion": {"mode": "diffusion", "block_length": 4},
    "diffusion-all-masks": {"mode": "diffusion", "block_length": 4, "seed_block": False},
}
PROMPT = [9, 8, 11]
each_mode = pytest.mark.parametrize("options", MODES.values(), ids=MODES)


@pytest.mark.parametrize("budget", range(10))
@each_mode
def test_end_of_thinking_comes_exactly_at_the_budget(options, budget):
    model = scripted(speculative(lambda position: position % 3 > 0, avoid=(THINK_END,)))
    sequence = run_alone(model, PROMPT, max_tokens=14, max_thinking_tokens=budget, **options)
    assert [i for i, t in enumerate(sequence.tokens) if t == THINK_END] == [budget]
    assert len(sequence.tokens) == 14


@each_mode
def test_output_and_cache_agree_where_end_of_thinking_was_forced(options):
    model = scripted(speculative(lambda position: position % 3 > 0, avoid=(THINK_END,)))
    engine = Engine(model)
    sequence = engine.add(
        PROMPT, GenerationOptions(max_tokens=14, max_thinking_tokens=5, **options)
    )
    longest = 0
    while engine.busy:
        engine.step()
        if sequence.cache is not None:
            held = spelled_cache(sequence.cache)
            assert held == (PROMPT + sequence.tokens)[: len(held)]
            longest = max(longest, len(held))
    assert longest >= len(PROMPT) + 9, "the forced token must have been looked at"


@each_mode
def test_the_model_goes_on_from_the_forced_token(options):
    """After `</think>` this model says 17 forever, before it 10."""

    def script(row):
        ended = THINK_END in row.visible.values()
        return peaked(17 if ended else 10, 0.95)

    model = scripted(script)
    tokens = run_alone(model, PROMPT, max_tokens=13, max_thinking_tokens=4, **options).tokens
    assert tokens[:5] == [10, 10, 10, 10, THINK_END] or options["mode"] == "diffusion"
    assert tokens[4] == THINK_END
    assert tokens[5:] == [17] * 8


@each_mode
def test_nothing_is_forced_where_the_model_ends_its_thinking_in_time(options):
    def script(row):
        position = row.position if row.token == MASK else row.position + 1
        return peaked(THINK_END if position == len(PROMPT) + 1 else 12, 0.95)

    tokens = run_alone(
        scripted(script), PROMPT, max_tokens=14, max_thinking_tokens=6, **options
    ).tokens
    assert [i for i, t in enumerate(tokens) if t == THINK_END] == [1]


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_nothing_is_forced_where_the_model_ends_its_thinking_in_the_same_block(options):
    def script(row):
        position = row.position if row.token == MASK else row.position + 1
        return peaked(THINK_END if position == len(PROMPT) + 1 else 12, 0.95)

    tokens = run_alone(
        scripted(script), PROMPT, max_tokens=14, max_thinking_tokens=3, **options
    ).tokens
    assert [i for i, t in enumerate(tokens) if t == THINK_END] == [1]


def test_end_of_thinking_in_the_prompt_does_not_count():
    model = scripted(speculative(lambda _: True, avoid=(THINK_END,)))
    tokens = run_alone(model, [9, THINK_END, 8], max_tokens=9, max_thinking_tokens=2).tokens
    assert tokens[2] == THINK_END


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@given(
    budget=st.integers(0, 20),
    seed=st.integers(0, 5),
    block_length=st.integers(1, 8),
    mode=st.sampled_from(["linear", "quadratic"]),
)
@settings(max_examples=25)
def test_speculation_equals_ar_under_a_thinking_budget(
    temperature, budget, seed, block_length, mode
):
    model = tiny("llama", seed, common=0.05, eos=())
    options = {"max_tokens": 18, "max_thinking_tokens": budget, "temperature": temperature}
    expected = model.generate(PROMPT, **options).tokens
    got = model.generate(PROMPT, mode=mode, block_length=block_length, **options).tokens
    assert got == expected
    if budget < 18:
        assert THINK_END in expected[: budget + 1]
