"""The KV cache: incremental equals recomputed, whatever was drafted, rejected or gathered."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.scripted import scripted, speculative, spelled_cache, word
from tests.reference.tiny import random_adapter, tiny
from trimode.config import GenerationOptions
from trimode.engine import Engine
from trimode.model import CachedAttention, KVCache, Segment

MODES = {
    "ar": {"mode": "ar"},
    "linear": {"mode": "linear", "block_length": 5},
    "linear-all-masks": {"mode": "linear", "block_length": 5, "seed_block": False},
    "linear-threshold": {"mode": "linear", "block_length": 5, "threshold": 0.6},
    "quadratic": {"mode": "quadratic", "block_length": 4},
    "diffusion": {"mode": "diffusion", "block_length": 5, "threshold": 0.5},
    "diffusion-all-masks": {"mode": "diffusion", "block_length": 5, "seed_block": False},
}
SPECULATIVE = {name: options for name, options in MODES.items() if "diffusion" not in name}


@torch.inference_mode()
def recomputed(model, tokens):
    """A fresh causal prefill of the tokens, adapter off."""
    transformer = model.model.transformer
    cache = KVCache(model.config, len(tokens))
    attend = CachedAttention([Segment(0, len(tokens), cache, "causal")], transformer.dtype, "cpu")
    transformer(torch.tensor(tokens), torch.arange(len(tokens)), attend)
    cache.keep(range(len(tokens)))
    return cache


def assert_same_cache(cache, model, tokens):
    assert cache.length <= len(tokens)
    fresh = recomputed(model, tokens[: cache.length])
    for ours, theirs in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
        held = ours[:, :, : cache.length]
        error = (held - theirs).abs().max() / theirs.abs().max()
        assert error < 1e-5, f"relative error {error:.1e} after {cache.length} tokens"


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen3"])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_cache_equals_a_fresh_causal_prefill_after_every_step(options, family, adapted):
    plain = tiny(family, 1, common=0.1, eos=())
    adapter = random_adapter(plain.config, scope="denoise", scale=0.5) if adapted else None
    model = tiny(family, 1, common=0.1, eos=(), adapter=adapter)
    engine = model.engine(max_rows=6)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 8]
    sequence = engine.add(prompt, GenerationOptions(max_tokens=26, **options))
    lengths = set()
    while engine.busy:
        engine.step()
        if sequence.cache is not None and sequence.cache.length:
            assert_same_cache(sequence.cache, model, prompt + sequence.tokens)
            lengths.add(sequence.cache.length)
    assert len(sequence.tokens) == 26
    assert max(lengths) >= len(prompt) + 20, "the run must get far beyond its prompt"


@given(
    right=st.lists(st.booleans(), min_size=126, max_size=126),
    prompt=st.lists(st.integers(8, 19), min_size=1, max_size=9),
    options=st.sampled_from(list(MODES.values())),
    max_rows=st.sampled_from([1, 3, 512]),
)
@settings(max_examples=60)
def test_cache_holds_exactly_the_final_tokens_in_order_after_any_accept_history(
    right, prompt, options, max_rows
):
    model = scripted(speculative(right.__getitem__))
    engine = Engine(model, max_rows=max_rows)
    sequence = engine.add(prompt, GenerationOptions(max_tokens=30, **options))
    seen = 0
    while engine.busy:
        engine.step()
        if sequence.cache is not None:
            seen += 1
            held = spelled_cache(sequence.cache)
            final = prompt + sequence.tokens
            assert held == final[: len(held)]
            if sequence.tokens:
                newest = 0 if options["mode"] == "diffusion" else 1  # not yet run through the model
                assert len(held) == len(final) - newest
    assert seen > 2


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_a_one_token_prompt_works(options):
    model = tiny("llama", 2, eos=())
    sequence = model.generate([9], max_tokens=11, **options)
    assert len(sequence.tokens) == 11
    if options["mode"] != "diffusion":
        assert sequence.tokens == model.generate([9], max_tokens=11).tokens


@pytest.mark.parametrize("room", [1, 2, 9])
@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_generation_ends_at_the_models_context_with_reason_length(options, room):
    model = tiny("llama", 2, eos=(), limit=40)
    prompt = [(i * 7) % 31 for i in range(40 - room)]
    sequence = model.generate(prompt, max_tokens=100, **options)
    assert len(sequence.tokens) == room
    assert sequence.finish_reason == "length"


@pytest.mark.parametrize("room", [1, 2, 9])
@pytest.mark.parametrize("options", SPECULATIVE.values(), ids=SPECULATIVE)
def test_speculation_equals_ar_up_to_the_models_context(options, room):
    model = tiny("ministral3", 2, eos=(), limit=40)
    prompt = [(i * 7) % 31 for i in range(40 - room)]
    expected = model.generate(prompt, max_tokens=100).tokens
    assert model.generate(prompt, max_tokens=100, **options).tokens == expected


@pytest.mark.parametrize("options", MODES.values(), ids=MODES)
def test_no_pass_uses_a_position_beyond_the_models_context(options):
    model = scripted(speculative(lambda position: position % 2 == 0), context=40)
    engine = Engine(model)
    engine.add([word("p", i) for i in range(25)], GenerationOptions(max_tokens=100, **options))
    while engine.busy:
        engine.step()
    used = {position for rows in model.runner.rows_run for _, position in rows}
    assert max(used) < 40


class Model:
    """What a KVCache should hold: plain lists of row numbers."""

    def __init__(self, config, capacity):
        self.cache, self.kept, self.next = KVCache(config, capacity), [], 0

    def write(self, count):
        config = self.cache.keys.shape
        self.rows = list(range(self.next, self.next + count))
        self.next += count
        values = torch.tensor(self.rows, dtype=torch.float32)
        spread = values[:, None, None].expand(count, config[1], config[3])
        for layer in range(config[0]):
            keys, held = self.cache.write(layer, spread + layer * 0.25, -spread - layer * 0.25)
            assert keys.shape[1] == held.shape[1] == len(self.kept) + count

    def check(self):
        assert self.cache.length == len(self.kept)
        for layer in range(len(self.cache.keys)):
            keys = self.cache.keys[layer, :, : self.cache.length]
            expected = torch.tensor(self.kept, dtype=torch.float32) + layer * 0.25
            assert torch.equal(keys, expected[None, :, None].expand_as(keys))
            values = self.cache.values[layer, :, : self.cache.length]
            assert torch.equal(values, -expected[None, :, None].expand_as(values))


@given(data=st.data())
@settings(max_examples=120)
def test_any_history_of_writes_keeps_and_crops_leaves_the_kept_rows_in_order(data):
    config = tiny("llama", 0).config
    model = Model(config, 40)
    for _ in range(data.draw(st.integers(1, 8), label="operations")):
        if data.draw(st.booleans(), label="crop") and model.kept:
            length = data.draw(st.integers(0, len(model.kept)), label="length")
            model.cache.crop(length)
            del model.kept[length:]
        else:
            count = data.draw(st.integers(1, 10), label="rows")
            if len(model.kept) + count > 40:
                continue
            model.write(count)
            picked = data.draw(
                st.lists(st.integers(0, count - 1), unique=True, max_size=count), label="kept"
            )
            model.cache.keep(picked)
            model.kept += [model.rows[i] for i in picked]
        model.check()


def test_keep_refuses_rows_that_are_not_pending():
    cache = KVCache(tiny("llama", 0).config, 8)
    with pytest.raises(AssertionError, match="pending"):
        cache.keep([0])


def test_write_refuses_to_run_past_the_capacity():
    config = tiny("llama", 0).config
    cache = KVCache(config, 4)
    rows = torch.zeros(5, config.num_kv_heads, config.head_dim)
    with pytest.raises(AssertionError, match="holds 4 tokens"):
        cache.write(0, rows, rows)
