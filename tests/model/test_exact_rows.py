"""int8 and int4: a row's result never depends on what else is in the pass."""

from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch

from tests.reference import families
from tests.reference.tiny import MASK, random_adapter, tiny
from trimode.errors import InputError
from trimode.model import KVCache, Segment, build_runner, choose_format, native
from trimode.model.runners import NativeRunner, RowwiseRunner

FAMILIES = tuple(families.FAMILIES)
DTYPES = ("int8", "int4")
BACKENDS = [
    pytest.param(
        "native", marks=pytest.mark.skipif(native.library() is None, reason="not built here")
    ),
    "pytorch",
]
TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4])

pytestmark = pytest.mark.parametrize("dtype", DTYPES)


def by(backend):
    """Builds models for the library, or for PyTorch's operators."""
    if backend == "native":
        return nullcontext()
    return patch("trimode.model.runners.native.library", return_value=None)


def transformer(family, backend, dtype, *, adapter=False):
    _, config, tensors = families.build(family)
    weights = random_adapter(config, 1, rank=16) if adapter else None
    with by(backend):
        model = build_runner(config, tensors.__getitem__, dtype=dtype, adapter=weights)
    by_library = backend == "native" and family not in families.BY_OPERATORS
    assert isinstance(model, NativeRunner if by_library else RowwiseRunner)
    return model


@torch.inference_mode()
def prefill(model, tokens, cuts=()):
    """Logits of every row, computed in chunks that end at `cuts`."""
    cache = KVCache(model.transformer.config, 64, dtype=model.kv_dtype)
    parts = []
    for start, stop in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
        positions = torch.arange(start, stop)
        segments = [Segment(0, stop - start, cache, "causal")]
        parts.append(model.logits(model.run(tokens[start:stop], positions, segments)))
        cache.keep(range(stop - start))
    return torch.cat(parts)


@pytest.mark.skipif(native.library() is None, reason="not built here")
@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_computes_the_pass_of_the_pytorch_operators(family, adapter, dtype):
    """To rounding: a norm that differs in its last bit can move a quantised value by one."""
    found, caches = [], []
    tokens = TOKENS.clone()
    tokens[-4:] = MASK
    for backend in ("native", "pytorch"):
        model = transformer(family, backend, dtype, adapter=adapter)
        cache = KVCache(model.transformer.config, 64, dtype=model.kv_dtype)
        with torch.inference_mode():
            segments = [Segment(0, 12, cache, "causal")]
            model.run(tokens[:12], torch.arange(12), segments)
            cache.keep(range(12))
            segments = [Segment(0, 8, cache, "block")]
            rows = torch.tensor([4, 6, 7]) if adapter else None  # one mask is as any token
            hidden = model.run(tokens[12:], torch.arange(12, 20), segments, rows)
            cache.keep(range(8))
            found.append(model.logits(hidden))
        caches.append(cache)
    for ours, theirs in (
        (found[0], found[1]),
        (caches[0].keys[..., :20, :], caches[1].keys[..., :20, :]),
    ):
        assert float((ours - theirs).norm() / theirs.norm()) < (0.003 if dtype == "int8" else 0.02)


@pytest.mark.skipif(native.library() is None, reason="not built here")
@torch.inference_mode()
def test_positions_far_ahead_get_the_rotation_that_they_would_get_alone(dtype):
    model = transformer("llama", "native", dtype)
    config, rope = model.transformer.config, model.transformer.rope
    for first in (0, 5000, 70, 40_000):
        positions = torch.arange(first, first + 3)
        expected = []
        for places in (None, positions):
            cache = KVCache(config, 8, dtype=model.kv_dtype)
            if places is not None:  # a table that has nothing else
                model._rotation, positions = rope(places, torch.float32), torch.arange(3)
            expected.append(model.run(TOKENS[:3], positions, [Segment(0, 3, cache, "causal")]))
        assert torch.equal(*expected)


@pytest.mark.parametrize("cuts", [(1,), (7, 8, 13), tuple(range(1, 20))], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_bits_at_once_in_chunks_and_token_by_token(
    family, backend, cuts, dtype
):
    model = transformer(family, backend, dtype)
    assert torch.equal(prefill(model, TOKENS, cuts), prefill(model, TOKENS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_are_the_same_bits_alone_and_packed(family, backend, dtype):
    model = transformer(family, backend, dtype, adapter=True)
    alone = prefill(model, TOKENS)
    caches = [KVCache(model.transformer.config, 64, dtype=model.kv_dtype) for _ in range(3)]
    tokens = torch.cat((TOKENS.flip(0), TOKENS, TOKENS[:9]))
    positions = torch.cat((torch.arange(20), torch.arange(20), torch.arange(9)))
    segments = [
        Segment(0, 20, caches[0], "block"),
        Segment(20, 40, caches[1], "causal"),
        Segment(40, 49, caches[2], "causal"),
    ]
    hidden = model.run(tokens, positions, segments, torch.arange(20))
    assert torch.equal(model.logits(hidden[20:40]), alone)
    assert torch.equal(model.logits(hidden[40:]), alone[:9])


@pytest.mark.parametrize("backend", BACKENDS)
@torch.inference_mode()
def test_rows_between_the_ones_it_sees_do_not_change_a_row(backend, dtype):
    """A verified path in a draft tree equals the same tokens decoded one after the other."""
    model = transformer("llama", backend, dtype)
    alone = prefill(model, TOKENS)
    cache = KVCache(model.transformer.config, 64, dtype=model.kv_dtype)
    segments = [Segment(0, 10, cache, "causal")]
    model.run(TOKENS[:10], torch.arange(10), segments)
    cache.keep(range(10))
    path = torch.tensor([0, 3, 4, 7, 9])
    tokens, positions = torch.full((10,), 11), torch.full((10,), 12)
    tokens[path], positions[path] = TOKENS[10:15], torch.arange(10, 15)
    visible = torch.ones(10, 10, dtype=torch.bool)
    visible[path] = False
    for i, row in enumerate(path):
        visible[row, path[: i + 1]] = True
    hidden = model.run(tokens, positions, [Segment(0, 10, cache, visible)])
    assert torch.equal(model.logits(hidden[path]), alone[10:15])
    cache.keep(path.tolist())
    rest = model.run(TOKENS[15:], torch.arange(15, 20), [Segment(0, 5, cache, "causal")])
    assert torch.equal(model.logits(rest), alone[15:])


def drafting(backend, seed, dtype):
    """A tiny model with a denoising adapter."""
    fields = {"sharpness": 3.0, "common": 0.05, "eos": ()}
    config = tiny("llama", seed, **fields).config
    adapter = random_adapter(config, seed, rank=16, scale=0.2, scope="denoise")
    with by(backend):
        return tiny("llama", seed, **fields, adapter=adapter, dtype=dtype)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}], ids=str)
@pytest.mark.parametrize("block_length", [1, 3, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_speculation_is_lossless(backend, block_length, sampling, dtype):
    for seed in range(2):
        model = drafting(backend, seed, dtype)
        prompt, asked = [3, 1, 4, 1, 5, 8], {"max_tokens": 24, **sampling}
        expected = model.generate(prompt, mode="ar", **asked).tokens
        for mode in ("linear", "quadratic"):
            got = model.generate(prompt, mode=mode, block_length=block_length, **asked).tokens
            assert got == expected


def test_it_is_refused_where_it_cannot_run(dtype):
    with pytest.raises(InputError, match=f"dtype: {dtype} on cuda; runs on the CPU only"):
        choose_format(dtype, "cuda")
