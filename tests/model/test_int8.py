"""int8: exact products of 12-bit activations."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import families
from trimode.model import KVCache, Segment, build_runner, native
from trimode.model.formats.int8 import Int8Linear
from trimode.model.runners import native as native_runner

TOKENS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3])


@torch.inference_mode()
def prefill(model, tokens):
    """Logits of every row of one pass."""
    cache = KVCache(model.transformer.config, 64, dtype=model.kv_dtype)
    segments = [Segment(0, len(tokens), cache, "causal")]
    return model.logits(model.run(tokens, torch.arange(len(tokens)), segments))


@pytest.mark.parametrize("features", [64, 9600])
def test_a_linear_is_the_exact_integer_product(features):
    """9,600 features: sums that 12-bit activations would overflow."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(33, features, generator=generator), torch.ones(5, features)
    x[1:] = torch.randn(4, features, generator=generator)
    weight[0] = 1
    linear = Int8Linear([weight], None)
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
Int8Linear([weight[:64]], None)
before = peak()
Int8Linear([weight], None)
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
    linear = Int8Linear([weight], torch.randn(out, generator=generator) if bias else None)
    x = torch.randn(rows, 16 * blocks, generator=generator)
    x[rows // 2] = 0
    assert torch.equal(native_runner.linear(linear, x), linear(x))
