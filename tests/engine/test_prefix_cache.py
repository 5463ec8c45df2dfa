"""Keys and values that others left behind, and requests that give way when memory is full."""

from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_cache import MODES
from tests.reference.scripted import scripted, speculative
from tests.reference.tiny import tiny
from trimode.config import GenerationOptions
from trimode.engine import Engine, drain
from trimode.model import KVCache

SYSTEM = tuple(range(8, 20)) + tuple(range(19, 7, -1))


def little_ahead():
    """Caches begin with little room, so that they must grow."""
    return patch("trimode.engine.scheduler._LENT_AHEAD", 8)


def run(engine, prompt, **options):
    sequence = engine.add(prompt, GenerationOptions(**options))
    for _ in drain(engine):
        pass
    return sequence


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_second_turn_starts_with_what_the_first_left(options):
    model = tiny("llama", 1, eos=())
    engine = model.engine()
    first = run(engine, SYSTEM, max_tokens=12, **options)
    prompt = (*SYSTEM, *first.tokens, 5, 6, 7)
    second = run(engine, prompt, max_tokens=12, **options)
    assert second.stats.cached_tokens >= len(SYSTEM) + 11
    assert second.tokens == model.generate(prompt, max_tokens=12, **options).tokens
    assert first.stats.cached_tokens == 0


def test_requests_share_the_prompt_of_one_that_still_runs():
    model = tiny("llama", 1, eos=())
    engine = model.engine()
    first = engine.add(SYSTEM, GenerationOptions(max_tokens=30))
    for _ in range(3):
        engine.step()
    second = engine.add((*SYSTEM, 4, 5, 6), GenerationOptions(max_tokens=8))
    engine.step()
    assert first.finish_reason is None
    assert second.stats.cached_tokens >= len(SYSTEM)
    for _ in drain(engine):
        pass
    assert second.tokens == model.generate((*SYSTEM, 4, 5, 6), max_tokens=8).tokens


def test_a_prompt_that_differs_early_shares_nothing():
    engine = tiny("llama", 1, eos=()).engine()
    run(engine, SYSTEM, max_tokens=4)
    assert run(engine, (9, 9, *SYSTEM), max_tokens=4).stats.cached_tokens == 0


def test_the_same_prompt_again_computes_its_last_rows_only():
    model = scripted(speculative(lambda position: True))
    engine = Engine(model)
    tokens = [run(engine, SYSTEM, max_tokens=6).tokens]
    model.runner.rows_run.clear()
    again = run(engine, SYSTEM, max_tokens=6)
    assert again.tokens == tokens[0]
    assert len(model.runner.rows_run[0]) == 2
    assert again.stats.cached_tokens == len(SYSTEM) - 2


@given(
    prompts=st.lists(st.lists(st.integers(8, 11), min_size=1, max_size=30), min_size=2, max_size=7),
    modes=st.lists(st.sampled_from(list(MODES.values())), min_size=7, max_size=7),
    max_rows=st.sampled_from([3, 512]),
)
@settings(max_examples=40, deadline=None)
def test_answers_do_not_depend_on_memory(prompts, modes, max_rows):
    """A pool that holds about one request: others wait, grow, give way and come back."""
    model = scripted(speculative(lambda position: position % 3 != 0))
    asked = [GenerationOptions(max_tokens=40, **mode) for mode in modes]
    bytes_per_token = KVCache.bytes_per_token(model.config, model.runner.kv_dtype)
    engine = Engine(model, max_rows=max_rows, kv_cache_bytes=192 * bytes_per_token)
    sequences = [engine.add(p, o) for p, o in zip(prompts, asked, strict=False)]
    steps = 0
    with little_ahead():
        while engine.busy:
            engine.step()
            assert engine.pool.tokens_lent <= engine.pool.max_tokens
            steps += 1
            assert steps < 5000, "no progress"
    for sequence in sequences:
        alone = run(Engine(model), sequence.prompt, **_fields(sequence.options))
        assert sequence.tokens == alone.tokens
        assert sequence.stats.nfe == alone.stats.nfe
    assert engine.pool.tokens_lent == 0


def _fields(options):
    return {name: getattr(options, name) for name in options.__slots__}


def test_a_request_that_gives_way_goes_on_where_it_was():
    model = tiny("llama", 2, eos=())
    size = KVCache.bytes_per_token(model.config, model.model.runner.kv_dtype)
    prompts = [[8 + i, *SYSTEM] for i in range(4)]
    engine = model.engine(kv_cache_bytes=320 * size)
    sequences = [engine.add(p, GenerationOptions(max_tokens=90)) for p in prompts]
    gave_way = set()
    with little_ahead():
        while engine.busy:
            engine.step()
            gave_way |= {s.id for s in engine.waiting if s.tokens}
    assert gave_way
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sequence.tokens == model.generate(prompt, max_tokens=90).tokens
        assert sequence.stats.nfe == 90
