"""int8: exact products, and a row's result that never depends on what else is in the pass."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import families
from tests.reference.tiny import MASK, random_adapter, tiny
from trimode.errors import InputError
from trimode.model import KVCache, Segment, build_runner, choose_format, native
from trimode.model.formats.int8 import Int8Linear
from trimode.model.runners import NativeRunner, RowwiseRunner
from trimode.model.runners import native as native_runner

FAMILIES = tuple(families.FAMILIES)
BACKENDS = [
    pytest.param(
        "native", marks=pytest.mark.skipif(native.library() is None, reason="not built here")
    ),
    "pytorch",
]
TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4])


def transformer(family, backend, *, adapter=False):
    _, config, tensors = families.build(family)
    weights = random_adapter(config, 1, rank=16) if adapter else None
    model = build_runner(config, tensors.__getitem__, dtype="int8", adapter=weights)
    by_library = native.library() is not None and family not in families.BY_OPERATORS
    assert isinstance(model, NativeRunner if by_library else RowwiseRunner)
    return by_operators(model) if backend == "pytorch" else model


def by_operators(model):
    """The same weights in the hands of PyTorch's operators."""
    return RowwiseRunner(model.transformer, model.format)


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


@pytest.mark.parametrize("features", [64, 9600])
def test_a_linear_is_the_exact_integer_product(features):
    """9,600 features: sums that 12-bit activations would overflow."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(33, features, generator=generator), torch.ones(5, features)
    x[1:] = torch.randn(4, features, generator=generator)
    weight[0] = 1
    linear = Int8Linear(weight, None)
    levels = {64: 2047, 9600: 1761}[features]
    top, most = x.abs().amax(1), torch.full((5,), float(levels))
    scale = top / most
    values = torch.round(x * (most / top)[:, None]).long()
    product = values @ linear.weight.long().T
    expected = product.float() * (scale[:, None] * linear.scale)
    assert torch.equal(linear(x), expected)
    assert float((linear.weight * linear.scale[:, None] - weight).abs().max()) < 0.02


def test_weights_are_quantised_row_by_row_however_they_are_stacked_and_packed():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(rows, 4100, generator=generator).bfloat16() for rows in (37, 1, 20)]
    linear = Int8Linear(parts, None)
    whole = torch.cat(parts).float()
    scale = whole.abs().amax(1) / torch.tensor(127.0)
    expected = torch.round(whole * (torch.tensor(127.0) / whole.abs().amax(1))[:, None])
    assert torch.equal(linear.scale, scale)
    assert torch.equal(linear.weight, expected.to(torch.int8))
    x = torch.randn(3, 4100, generator=generator)
    plain = linear(x)
    linear.pack()
    assert linear.weight is None
    assert linear.packed.shape == (4, 1040, 16, 4)
    assert torch.equal(linear(x), plain)
    assert torch.equal(linear.rows(torch.tensor([57, 2])), (expected * scale[:, None])[[57, 2]])


QUANTISE = """
import re, torch
from trimode.model.formats.int8 import Int8Linear
def peak():  # ru_maxrss would begin at the size of the process that started this one
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
weight = torch.ones(16384, 2048, dtype=torch.bfloat16)
Int8Linear(weight[:64], None)
before = peak()
Int8Linear(weight, None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_quantising_holds_the_int8_weights_and_no_copy_in_fp32():
    run = [sys.executable, "-c", QUANTISE]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert 20 < float(done.stdout) < 1.3 * 32  # MB; the copy would be 128


@torch.inference_mode()
def test_embeddings_of_a_bf16_checkpoint_stay_bf16_and_count_as_fp32():
    _, config, tensors = families.build("llama")
    stored = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    model = build_runner(config, stored.__getitem__, dtype="int8")
    widened = {name: tensor.float() for name, tensor in stored.items()}
    same = build_runner(config, widened.__getitem__, dtype="int8")
    assert model.transformer.embedding.weight.dtype == torch.bfloat16
    assert model.transformer.embedding.matrix().dtype == torch.float32
    assert torch.equal(prefill(model, TOKENS), prefill(same, TOKENS))


@pytest.mark.skipif(native.library() is None, reason="not built here")
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 80),
    out=st.integers(1, 60),
    blocks=st.integers(1, 9),
    seed=st.integers(0, 99),
    bias=st.booleans(),
)
def test_the_library_computes_a_linear_bit_for_bit(rows, out, blocks, seed, bias):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, 16 * blocks, generator=generator)
    linear = Int8Linear(weight, torch.randn(out, generator=generator) if bias else None)
    x = torch.randn(rows, 16 * blocks, generator=generator)
    x[rows // 2] = 0
    assert torch.equal(native_runner.linear(linear, x), linear(x))


@pytest.mark.skipif(native.library() is None, reason="not built here")
@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_library_computes_the_pass_of_the_pytorch_operators(family, adapter):
    """To rounding: a norm that differs in its last bit can move a quantised value by one."""
    found, caches = [], []
    tokens = TOKENS.clone()
    tokens[-4:] = MASK
    for backend in ("native", "pytorch"):
        model = transformer(family, backend, adapter=adapter)
        cache = KVCache(model.transformer.config, 64, dtype=model.kv_dtype)
        with torch.inference_mode():
            segments = [Segment(0, 12, cache, "causal")]
            model.run(tokens[:12], torch.arange(12), segments)
            cache.keep(range(12))
            segments = [Segment(0, 8, cache, "block")]
            rows = torch.tensor([4, 5, 6, 7]) if adapter else None
            hidden = model.run(tokens[12:], torch.arange(12, 20), segments, rows)
            cache.keep(range(8))
            found.append(model.logits(hidden))
        caches.append(cache)
    for ours, theirs in (
        (found[0], found[1]),
        (caches[0].keys[..., :20, :], caches[1].keys[..., :20, :]),
    ):
        assert float((ours - theirs).norm() / theirs.norm()) < 0.003


@pytest.mark.parametrize("cuts", [(1,), (7, 8, 13), tuple(range(1, 20))], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_same_bits_at_once_in_chunks_and_token_by_token(family, backend, cuts):
    model = transformer(family, backend)
    assert torch.equal(prefill(model, TOKENS, cuts), prefill(model, TOKENS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_are_the_same_bits_alone_and_packed(family, backend):
    model = transformer(family, backend, adapter=True)
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
def test_rows_between_the_ones_it_sees_do_not_change_a_row(backend):
    """A verified path in a draft tree equals the same tokens decoded one after the other."""
    model = transformer("llama", backend)
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


def integer(backend, seed):
    """A tiny model with a denoising adapter, in int8."""
    fields = {"sharpness": 3.0, "common": 0.05, "eos": ()}
    config = tiny("llama", seed, **fields).config
    adapter = random_adapter(config, seed, rank=16, scale=0.2, scope="denoise")
    found = tiny("llama", seed, **fields, adapter=adapter, dtype="int8")
    if backend == "pytorch":
        model = replace(found.model, runner=by_operators(found.model.runner))
        found = replace(found, model=model)
    return found


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}], ids=str)
@pytest.mark.parametrize("block_length", [1, 3, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_speculation_is_lossless(backend, block_length, sampling):
    for seed in range(3):
        model = integer(backend, seed)
        prompt, asked = [3, 1, 4, 1, 5, 8], {"max_tokens": 24, **sampling}
        expected = model.generate(prompt, mode="ar", **asked).tokens
        for mode in ("linear", "quadratic"):
            got = model.generate(prompt, mode=mode, block_length=block_length, **asked).tokens
            assert got == expected


def test_int8_is_refused_where_it_cannot_run():
    with pytest.raises(InputError, match="dtype: int8 on cuda; runs on the CPU only"):
        choose_format("int8", "cuda")
