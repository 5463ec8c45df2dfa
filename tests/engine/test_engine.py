"""The step loop: packing, chunking, cancelling, admission and the KV pool."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.options import readable
from tests.reference.scripted import scripted, speculative, word
from tests.reference.tiny import run_alone, tiny
from trimode.config import GenerationOptions
from trimode.decoding import CostCurve
from trimode.engine import Engine, drain
from trimode.engine.kv_pool import KVPool
from trimode.errors import InputError
from trimode.model import KVCache

REQUESTS = {
    "ar": {"mode": "ar"},
    "ar-sampled": {"mode": "ar", "temperature": 0.8, "top_p": 0.9, "seed": 3},
    "linear": {"mode": "linear", "block_length": 5},
    "linear-all-masks": {"mode": "linear", "block_length": 5, "seed_block": False},
    "linear-threshold": {"mode": "linear", "block_length": 6, "threshold": 0.6},
    "quadratic": {"mode": "quadratic", "block_length": 4},
    "diffusion": {"mode": "diffusion", "block_length": 8, "threshold": 0.5},
    "diffusion-quota": {
        "mode": "diffusion",
        "block_length": 8,
        "commit_rule": "quota",
        "max_denoising_steps": 3,
    },
    "diffusion-sampled": {"mode": "diffusion", "block_length": 8, "temperature": 0.7, "seed": 9},
    "diffusion-all-masks": {"mode": "diffusion", "block_length": 7, "seed_block": False},
}


def requests(seed=0):
    """One request of every kind, with unequal prompts and budgets."""
    for i, (name, options) in enumerate(REQUESTS.items()):
        prompt = [(seed + 5 * i + j * j) % 31 for j in range(1 + (seed + 7 * i) % 13)]
        yield name, prompt, {"max_tokens": 9 + (seed + 3 * i) % 11, **options}


def outcome(sequence):
    return sequence.tokens, sequence.stats.nfe, sequence.finish_reason


@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen3"])
@pytest.mark.parametrize("limits", [{}, {"max_sequences": 2}, {"max_rows": 20}], ids=str)
def test_packed_sequences_get_what_they_get_alone_in_every_mode(family, limits):
    model = tiny(family, 1, common=0.05)
    engine = model.engine(**limits)
    packed = {}
    for name, prompt, options in requests():
        alone = outcome(model.generate(prompt, **options))
        packed[name] = engine.add(prompt, GenerationOptions(**options)), alone
    for _ in drain(engine):
        pass
    for name, (sequence, alone) in packed.items():
        assert outcome(sequence) == alone, name


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_chunked_prefill_changes_neither_tokens_nor_nfe(name, max_rows):
    model = tiny("ministral3", 2, common=0.05)
    prompt = [(j * j) % 31 for j in range(23)]
    options = {"max_tokens": 12, **REQUESTS[name]}
    engine = model.engine(max_rows=max_rows)
    sequence = engine.add(prompt, GenerationOptions(**options))
    for _ in drain(engine):
        pass
    assert outcome(sequence) == outcome(model.generate(prompt, **options))


def test_a_long_prompt_takes_as_many_passes_as_its_chunks():
    model = scripted(speculative(lambda _: True))
    engine = Engine(model, max_rows=10)
    sequence = engine.add([9] * 35, GenerationOptions(max_tokens=1))
    for _ in drain(engine):
        pass
    assert [len(rows) for rows in model.runner.rows_run] == [10, 10, 10, 5]
    assert sequence.stats.nfe == 1


@pytest.mark.parametrize("victim", ["ar", "linear", "quadratic", "diffusion"])
def test_cancelling_at_any_step_changes_no_other_sequence_and_frees_the_cache(victim):
    model = scripted(speculative(lambda position: position % 3 > 0), vocab=20)
    kinds = {name: REQUESTS[name] for name in ("ar", "linear", "quadratic", "diffusion")}
    prompts = {name: [word(name, i) for i in range(3 + i)] for i, name in enumerate(kinds)}
    alone = {
        name: run_alone(model, prompts[name], max_tokens=14, **options).tokens
        for name, options in kinds.items()
    }
    outcomes = set()
    for when in range(12):
        engine = Engine(model, max_rows=32)
        running = {
            name: engine.add(prompts[name], GenerationOptions(max_tokens=14, **options))
            for name, options in kinds.items()
        }
        for _ in range(when):
            engine.step()
        cancelled = running.pop(victim)
        finished = cancelled.finish_reason is not None
        lent = engine.pool.tokens_lent
        held = cancelled.cache.capacity if cancelled.cache else 0
        engine.cancel(cancelled)
        assert engine.pool.tokens_lent == lent - held
        assert cancelled.cache is None
        outcomes.add((finished, bool(cancelled.tokens), held > 0))
        before = list(cancelled.tokens)
        for _ in drain(engine):
            pass
        assert cancelled.tokens == before == alone[victim][: len(before)]
        assert cancelled.finish_reason == ("length" if finished else "cancelled")
        for name, sequence in running.items():
            assert sequence.tokens == alone[name], (name, when)
        assert engine.pool.tokens_lent == 0
    assert (False, False, False) in outcomes, "never cancelled while waiting"
    assert (False, True, True) in outcomes, "never cancelled in the middle"


def test_cancelling_twice_is_harmless():
    model = tiny("llama", 0)
    engine = model.engine()
    sequence = engine.add([3, 4], GenerationOptions(max_tokens=5))
    engine.step()
    engine.cancel(sequence)
    engine.cancel(sequence)
    assert sequence.finish_reason == "cancelled"
    assert engine.pool.tokens_lent == 0
    assert not engine.busy


def small_pool(tokens, **limits):
    model = scripted(speculative(lambda position: position % 2 == 0))
    per_token = KVCache.bytes_per_token(model.config, model.runner.kv_dtype)
    return Engine(model, kv_cache_bytes=tokens * per_token, **limits)


def test_sequences_that_do_not_fit_the_kv_pool_wait_and_are_admitted_later():
    engine = small_pool(150)
    sequences = [engine.add([9, 9, i + 8], GenerationOptions(max_tokens=30)) for i in range(5)]
    most = 0
    while engine.busy:
        engine.step()
        assert engine.pool.tokens_lent <= engine.pool.tokens_held <= 150
        most = max(most, len(engine.live))
    assert most == 2
    assert [s.finish_reason for s in sequences] == ["length"] * 5
    admitted = [s.stats.admitted_at for s in sequences]
    assert admitted == sorted(admitted), "first come, first served"


def test_no_more_sequences_run_at_once_than_allowed():
    engine = small_pool(100_000, max_sequences=3)
    sequences = [engine.add([9, 9], GenerationOptions(max_tokens=4 + i)) for i in range(7)]
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine.live))
    assert most == 3
    assert [len(s.tokens) for s in sequences] == [4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic", "diffusion"])
def test_a_request_that_just_fits_the_kv_pool_runs_and_one_that_never_fits_is_refused(mode):
    options = GenerationOptions(**readable(mode, block_length=4, max_tokens=60))
    scratch = {"ar": 1, "linear": 4, "diffusion": 4, "quadratic": 20}[mode]
    engine = small_pool(3 + 60 + scratch)
    sequence = engine.add([9, 9, 9], options)
    for _ in drain(engine):
        pass
    assert len(sequence.tokens) == 60
    with pytest.raises(InputError, match=r"max_tokens.*KV cache"):
        small_pool(3 + 60 + scratch - 1).add([9, 9, 9], options)


@given(
    asked=st.lists(st.tuples(st.integers(1, 400), st.integers(0, 5)), min_size=1, max_size=40),
    bound=st.integers(64, 700),
)
@settings(max_examples=150)
def test_the_kv_pool_never_exceeds_its_bound_nor_lends_a_cache_twice(asked, bound):
    config = tiny("llama", 0).config
    dtype = tiny("llama", 0).model.runner.kv_dtype
    per_token = KVCache.bytes_per_token(config, dtype)
    pool = KVPool(config, bound * per_token, dtype=dtype, device="cpu")
    assert pool.max_tokens == bound
    lent = []
    for tokens, release in asked:
        cache = pool.acquire(tokens)
        if cache is not None:
            assert cache.capacity >= tokens
            assert cache.length == cache.pending == 0
            assert all(cache is not other for other in lent)
            lent.append(cache)
        else:
            assert lent or tokens > bound, "an empty pool must grant what fits its bound"
        assert sum(c.capacity for c in lent) == pool.tokens_lent <= pool.tokens_held <= bound
        for _ in range(min(release, len(lent))):
            pool.release(lent.pop(0))
    for cache in lent:
        pool.release(cache)
    assert pool.tokens_lent == 0


def test_short_requests_run_side_by_side_after_a_long_one_has_gone():
    engine = small_pool(128)
    engine.add([9] * 20, GenerationOptions(max_tokens=100))
    for _ in drain(engine):
        pass
    shorts = [engine.add([9, 9], GenerationOptions(max_tokens=4)) for _ in range(2)]
    engine.step()
    assert all(sequence in engine.live for sequence in shorts)


def steps_to_finish(engine, sequence, limit):
    for step in range(1, limit + 1):
        engine.step()
        if sequence.finish_reason is not None:
            return step
    return None


def test_a_prefill_is_not_starved_by_many_decoders():
    engine = Engine(scripted(speculative(lambda _: False)), max_rows=8)
    for i in range(10):
        engine.add([9, 9], GenerationOptions(max_tokens=100), sequence_id=f"decoder {i}")
    for _ in range(8):
        engine.step()
    late = engine.add([9] * 12, GenerationOptions(max_tokens=2))
    assert steps_to_finish(engine, late, 20) is not None


def test_decoders_of_unequal_size_all_advance():
    engine = Engine(scripted(speculative(lambda _: False)), max_rows=24)
    sequences = [
        engine.add([9, 9], GenerationOptions(**readable(mode, block_length=4, max_tokens=60)))
        for mode in ("quadratic", "linear", "quadratic", "ar", "diffusion", "quadratic")
    ]
    for _ in range(30):
        engine.step()
    assert all(len(s.tokens) >= 4 for s in sequences), [len(s.tokens) for s in sequences]


def test_a_prefill_is_not_starved_by_one_decoder_larger_than_a_pass():
    """Quadratic at the default block length takes 32 * 33 rows; a pass has 512."""
    engine = Engine(scripted(speculative(lambda _: False)))
    engine.add([9, 9], GenerationOptions(mode="quadratic", block_length=32, max_tokens=60))
    for _ in range(4):
        engine.step()
    late = engine.add([9] * 12, GenerationOptions(max_tokens=2))
    assert steps_to_finish(engine, late, 12) is not None


def test_a_prefill_is_not_starved_where_passes_are_tiny():
    engine = Engine(scripted(speculative(lambda _: False)), max_rows=2)
    for _ in range(2):
        engine.add([9, 9], GenerationOptions(max_tokens=100))
    for _ in range(8):
        engine.step()
    late = engine.add([9] * 4, GenerationOptions(max_tokens=2))
    assert steps_to_finish(engine, late, 40) is not None


def test_passes_keep_to_max_rows_where_no_single_span_is_larger():
    model = scripted(speculative(lambda position: position % 2 == 0))
    engine = Engine(model, max_rows=30)
    for i, mode in enumerate(["ar", "linear", "diffusion", "quadratic"] * 3):
        engine.add(
            [9] * (1 + 9 * i), GenerationOptions(**readable(mode, block_length=4, max_tokens=6))
        )
    for _ in drain(engine):
        pass
    sizes = [len(rows) for rows in model.runner.rows_run]
    assert max(sizes) <= 30
    assert max(sizes) > 20, "passes must be packed"


def test_changing_the_prompt_list_after_add_changes_nothing():
    model = tiny("llama", 0, eos=())
    engine = model.engine()
    prompt = [3, 4, 9]
    sequence = engine.add(prompt, GenerationOptions(max_tokens=8))
    prompt.append(11)
    for _ in drain(engine):
        pass
    assert sequence.tokens == model.generate([3, 4, 9], max_tokens=8).tokens


def test_text_of_the_updates_is_the_text_of_the_result():
    model = tiny("llama", 3, common=0.05)
    for _, prompt, options in requests():
        engine = model.engine()
        sequence = engine.add(prompt, GenerationOptions(**options))
        assert "".join(u.text for u in drain(engine)) == sequence.text_stream.text


def test_an_engine_without_work_steps_to_nothing():
    assert tiny("llama", 0).engine().step() == []


def waiting_in(engine):
    """Live sequences without text."""
    return [sequence for sequence in engine.live if not sequence.tokens]


def test_a_newcomers_prompt_shares_its_pass_with_few_rows_of_others():
    model = scripted(speculative(lambda _: False))
    engine = Engine(model)
    for _ in range(12):
        asked = GenerationOptions(mode="diffusion", block_length=16, max_tokens=64)
        engine.add([9, 9], asked)
    while engine.waiting or waiting_in(engine):
        engine.step()
    engine.step()
    assert len(model.runner.rows_run[-1]) == 12 * 16
    late = engine.add([9] * 40, GenerationOptions(max_tokens=4))
    engine.step()
    assert len(model.runner.rows_run[-1]) == 40 + 32, "two blocks of others beside it"
    assert late.tokens


def test_where_rows_have_their_price_fewer_of_others_share_a_newcomers_pass():
    model = scripted(speculative(lambda _: False))
    costs = CostCurve((1, 8, 128), (0.005, 0.018, 0.24), (0.005, 0.018, 0.24))
    assert costs.efficient_rows == 8
    engine = Engine(model, costs=costs, interactive=True)
    for _ in range(12):
        engine.add([9, 9], GenerationOptions(max_tokens=64))
    while engine.waiting or waiting_in(engine):
        engine.step()
    engine.add([9] * 40, GenerationOptions(max_tokens=4))
    engine.step()
    assert len(model.runner.rows_run[-1]) == 40 + 4


def test_if_nobody_waits_for_each_token_costs_do_not_shorten_passes():
    model = scripted(speculative(lambda _: False))
    costs = CostCurve((1, 32, 64), (0.005, 0.096, 0.192), (0.005, 0.096, 0.192))
    engine = Engine(model, costs=costs)
    for _ in range(3):
        engine.add([9] * 40, GenerationOptions(max_tokens=4))
    engine.step()
    assert len(model.runner.rows_run[-1]) == 120


def test_a_long_prompt_holds_others_up_for_no_longer_than_a_pass_may_take():
    model = scripted(speculative(lambda _: False))
    costs = CostCurve((1, 32, 64), (0.005, 0.096, 0.192), (0.005, 0.096, 0.192))
    assert costs.rows_within(0.12, 512) == 40
    assert costs.rows_within(0.001, 512) == 1
    assert costs.rows_within(9.0, 512) == 512
    engine = Engine(model, costs=costs, interactive=True)
    long = engine.add([9] * 100, GenerationOptions(max_tokens=8))
    engine.step()
    assert long.tokens, "alone: the whole prompt at once"
    late = engine.add([8] * 100, GenerationOptions(max_tokens=8))
    for pieces in range(1, 4):
        assert not late.tokens
        engine.step()
        assert len(long.tokens) == 1 + pieces, "it goes on beside each piece"
        assert len(model.runner.rows_run[-1]) <= 40 + 1
    assert late.tokens


def test_small_prompts_leave_a_pass_room_for_others():
    model = scripted(speculative(lambda _: False))
    engine = Engine(model)
    for _ in range(80):
        engine.add([9, 9], GenerationOptions(max_tokens=64))
    engine.scheduler.max_sequences = 100
    while engine.waiting or waiting_in(engine):
        engine.step()
    engine.add([9] * 10, GenerationOptions(max_tokens=4))
    engine.step()
    assert len(model.runner.rows_run[-1]) == 64


@given(
    max_rows=st.sampled_from([1, 2, 5, 16, 64, 512]),
    asked=st.lists(
        st.tuples(
            st.sampled_from(["ar", "linear", "quadratic", "diffusion"]),
            st.integers(1, 6),
            st.integers(1, 40),
            st.integers(0, 30),
        ),
        min_size=1,
        max_size=12,
    ),
)
@settings(max_examples=60, deadline=None)
def test_everyone_advances_whoever_else_comes(max_rows, asked):
    """Between two of its passes are no more steps than run all others twice, prompts in pieces."""
    engine = Engine(scripted(speculative(lambda p: p % 2 == 0)), max_rows=max_rows)
    coming = sorted(asked, key=lambda one: one[3])
    ran: dict[str, int] = {}
    for now in range(10_000):
        while coming and coming[0][3] <= now:
            mode, block_length, length, _ = coming.pop(0)
            asked = readable(mode, block_length=block_length, max_tokens=20)
            options = GenerationOptions(**asked)
            engine.add([9] * length, options)
        if not coming and not engine.busy:
            break
        engine.step()
        for sequence in engine.live:
            ran.setdefault(sequence.id, now)
            if sequence.last_step == engine._steps:
                ran[sequence.id] = now
            pieces = sum(1 + len(other.prompt) // max(1, max_rows // 2) for other in engine.live)
            assert now - ran[sequence.id] <= 2 * pieces + 12, sequence.id
    else:
        raise AssertionError("not finished")
