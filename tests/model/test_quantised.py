"""Matrices in blocks: gguf's own reader and quantiser are the oracle."""

from unittest.mock import patch

import gguf
import numpy as np
import pytest
import torch

from trimode.model import native
from trimode.model.quantised import BLOCK_KINDS, KIND_NUMBERS, QuantisedMatrix, quantise

READERS = [
    pytest.param(
        "library", marks=pytest.mark.skipif(native.library() is None, reason="not built here")
    ),
    "pytorch",
]


def random_matrix(kind, rows, columns, seed=0):
    """Any bytes, but for scales, which are finite."""
    form, random = BLOCK_KINDS[kind], np.random.default_rng(seed)
    shape = (rows, columns // form.weights, form.size)
    blocks = random.integers(0, 256, shape, dtype=np.uint8)
    for at in form.halves:
        scales = (random.normal(size=shape[:2]) * 0.1).astype(np.float16)
        blocks[:, :, at : at + 2] = scales[..., None].view(np.uint8)
    return QuantisedMatrix(kind, torch.from_numpy(blocks.reshape(rows, -1)))


def reading(reader):
    found = native.library() if reader == "library" else None
    return patch("trimode.model.quantised.library", return_value=found)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_blocks_are_read_as_gguf_reads_them(kind, reader):
    matrix = random_matrix(kind, 9, 768)
    expected = gguf.dequantize(matrix.blocks.numpy(), gguf.GGMLQuantizationType[kind])
    with reading(reader):
        found = matrix.floats()
        some = matrix.floats(torch.tensor([7, 0, 7]))
    assert matrix.shape == (9, 768)
    assert found.shape == expected.shape
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(some, found[[7, 0, 7]])
    assert torch.equal(matrix.rows(torch.tensor([3, 1])).floats(), found[[3, 1]])


def test_kinds_have_ggmls_sizes_and_the_librarys_numbers():
    for kind, form in BLOCK_KINDS.items():
        number = gguf.GGMLQuantizationType[kind]
        assert gguf.GGML_QUANT_SIZES[number] == (form.weights, form.size)
    assert list(KIND_NUMBERS.values()) == list(range(len(BLOCK_KINDS)))


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_a_scale_that_is_not_finite_is_found(kind):
    for at in BLOCK_KINDS[kind].halves:
        for bad in (np.nan, np.inf, -np.inf):
            matrix = random_matrix(kind, 3, 512)
            assert matrix.is_finite()
            place = BLOCK_KINDS[kind].size + at
            matrix.blocks[1, place : place + 2] = torch.from_numpy(
                np.array([bad], dtype=np.float16).view(np.uint8)
            )
            assert not matrix.is_finite()


@pytest.mark.parametrize("reader", READERS)
def test_eight_bits_are_within_half_a_step(reader):
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    weight[2, :32] = 0
    with reading(reader):
        found = quantise(weight.bfloat16(), "Q8_0").floats()
    steps = weight.bfloat16().float().view(5, 3, 32).abs().amax(-1) / 127
    off = (found - weight.bfloat16().float()).view(5, 3, 32).abs().amax(-1)
    assert bool((off <= 0.51 * steps + 1e-9).all())
    assert not found[2, :32].any()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_four_bits_are_never_worse_than_ggmls(scale, reader):
    """Q4_1 of llama.cpp is to the nearest between a group's least and largest weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 512, generator=generator) * scale
    weight[:16] *= weight[:16].abs() / scale  # long tails
    weight[20] = 0.5 * scale
    theirs = gguf.dequantize(
        gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_1),
        gguf.GGMLQuantizationType.Q4_1,
    )
    with reading(reader):
        ours = quantise(weight, "Q4_1").floats()
    errors = [(torch.as_tensor(each) - weight).square().mean(1) for each in (ours, theirs)]
    assert float(errors[0].sum()) < 0.8 * float(errors[1].sum())
    assert bool((errors[0] <= errors[1] * 1.001 + 1e-12).all())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_last_group_that_is_not_full_is_padded(dtype, reader):
    weight = torch.randn(3, 80, generator=torch.Generator().manual_seed(0)).to(dtype)
    for kind in ("Q4_1", "Q8_0"):
        with reading(reader):
            matrix = quantise(weight, kind)
        assert matrix.shape == (3, 80)
        assert matrix.floats().shape == (3, 80)
        assert float((matrix.floats() - weight).abs().max()) < (0.3 if kind == "Q4_1" else 0.03)
