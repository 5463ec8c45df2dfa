"""int4: the library's products are those of PyTorch's operators, bit for bit."""

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.test_quantised import random_matrix
from tests.reference import families
from trimode.model import KVCache, Segment, build_runner, native
from trimode.model.formats.int4 import GroupedLinear, quantise_rows
from trimode.model.quantised import BLOCK_KINDS, QuantisedMatrix, quantise
from trimode.model.runners.native import highest_outputs, linear

needs_library = pytest.mark.skipif(native.library() is None, reason="not built here")


def activations(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.rand(rows, 1, generator=generator) * 10
    x[rows // 2, :32] = 0
    return x


def test_activations_are_whole_numbers_with_a_scale_for_each_32():
    x = activations(5, 80)
    rows = quantise_rows(x)
    assert rows.values.shape == (5, 3, 32)
    assert torch.equal(rows.values, rows.values.round())
    assert float(rows.values.abs().max()) == 127
    assert not rows.values[:, 2, 16:].any()
    found = (rows.values * rows.scale[..., None]).flatten(1)[:, :80]
    top = torch.nn.functional.pad(x, (0, 16)).view(5, 3, 32).abs().amax(-1)
    steps = (top / 127).repeat_interleave(32, 1)[:, :80]
    assert bool(((found - x).abs() <= 0.51 * steps).all())


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_a_product_is_that_of_the_dequantised_weights(kind):
    weight, x = random_matrix(kind, 40, 768), activations(7, 768)
    rows = quantise_rows(x)
    rounded = (rows.values * rows.scale[..., None]).flatten(1)
    expected = rounded.double() @ weight.floats().double().T
    found = GroupedLinear([weight], None, packs=False)(x)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@needs_library
@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(list(BLOCK_KINDS)),
    rows=st.one_of(st.integers(1, 20), st.integers(60, 100)),
    out=st.integers(1, 70),
    blocks=st.integers(1, 5),
    seed=st.integers(0, 99),
    bias=st.booleans(),
)
def test_the_library_computes_a_linear_bit_for_bit(kind, rows, out, blocks, seed, bias):
    weight = random_matrix(kind, out, BLOCK_KINDS[kind].weights * blocks, seed)
    added = torch.randn(out, generator=torch.Generator().manual_seed(seed)) if bias else None
    x = activations(rows, weight.shape[1], seed)
    packed, plain = (GroupedLinear([weight], added, packs=packs) for packs in (True, False))
    assert torch.equal(linear(packed, x), plain(x))


@needs_library
@pytest.mark.parametrize("columns", [16, 48, 80])
@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_groups_that_end_early(kind, columns):
    weight = torch.randn(20, columns, generator=torch.Generator().manual_seed(0))
    x = activations(9, columns)
    packed, plain = (
        GroupedLinear([quantise(weight, kind)], None, packs=packs) for packs in (True, False)
    )
    assert torch.equal(linear(packed, x), plain(x))
    assert torch.equal(packed.rows(torch.arange(20)), plain.rows(torch.arange(20)))


@needs_library
def test_linears_of_several_kinds_are_stacked():
    weights = [random_matrix("Q4_K", 13, 512), random_matrix("Q6_K", 8, 512, 1)]
    weights.append(random_matrix("Q8_0", 3, 512, 2))
    x = activations(11, 512)
    stacked = GroupedLinear(weights, None, packs=True)
    alone = [linear(GroupedLinear([weight], None, packs=True), x) for weight in weights]
    assert torch.equal(linear(stacked, x), torch.cat(alone, dim=1))
    assert torch.equal(GroupedLinear(weights, None, packs=False)(x), torch.cat(alone, dim=1))
    index = torch.tensor([23, 0, 12, 13, 20, 21])
    floats = torch.cat([weight.floats() for weight in weights])
    assert torch.equal(stacked.rows(index), floats[index])


@needs_library
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_a_row_is_the_same_alone_and_among_others(kind):
    weight, x = random_matrix(kind, 33, 512), activations(100, 512)
    packed = GroupedLinear([weight], None, packs=True)
    together = linear(packed, x)
    for rows in (1, 2, 3, 5, 8, 31, 64, 65):
        for start in (0, 7, 100 - rows):
            assert torch.equal(linear(packed, x[start : start + rows]), together[start:][:rows])


def alike(out, columns, seed=0):
    """Weights whose outputs are so much alike that lower nibbles decide which is the highest."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, columns, generator=generator)
    return common + 0.03 * torch.randn(out, columns, generator=generator)


def best(outputs, excluded=-1):
    outputs = outputs.clone()
    if excluded >= 0:
        outputs[:, excluded] = -torch.inf
    return outputs.numpy().argmax(1).tolist()


@needs_library
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    out=st.integers(2, 300),
    columns=st.sampled_from([32, 48, 576]),
    close=st.booleans(),
    excludes=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_highest_output_is_that_of_the_whole_product(rows, out, columns, close, excludes, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = alike(out, columns, seed) if close else torch.randn(out, columns, generator=generator)
    x = activations(rows, columns, seed)
    head = GroupedLinear([quantise(weight, "Q8_0")], None, packs=True)
    outputs = linear(head, x)
    excluded = best(outputs)[0] if excludes else -1
    assert highest_outputs(head, x, excluded) == best(outputs, excluded)


@needs_library
def test_the_highest_output_of_a_row_depends_on_that_row_alone():
    head = GroupedLinear([quantise(alike(700, 96), "Q8_0")], None, packs=True)
    x = activations(33, 96)
    alone = [token for row in x for token in highest_outputs(head, row[None])]
    assert alone == highest_outputs(head, x) == best(linear(head, x))


@needs_library
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 20])
def test_each_output_can_be_the_highest_where_nearly_all_are_ruled_out(rows):
    """So each strip's bounds belong to its outputs, in pairs of strips and alone."""
    weight = torch.randn(1000, 576, generator=torch.Generator().manual_seed(0))
    head = GroupedLinear([quantise(weight, "Q8_0")], None, packs=True)
    found = [token for part in weight.split(rows) for token in highest_outputs(head, part)]
    assert found == list(range(1000))


@needs_library
def test_of_equal_outputs_the_first_is_the_highest():
    weight = alike(90, 64)[torch.arange(540) % 90]
    head = GroupedLinear([quantise(weight, "Q8_0")], None, packs=True)
    found = highest_outputs(head, activations(20, 64))
    assert found == best(linear(head, activations(20, 64)))
    assert max(found) < 90
    assert highest_outputs(head, torch.zeros(2, 64)) == [0, 0]
    assert highest_outputs(head, torch.zeros(1, 64), 0) == [1]


@needs_library
def test_weights_whose_lower_nibbles_are_all_alike_are_no_exception():
    """Weights of one bit, as of ternary models: errors of the upper nibbles do not cancel out."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 2, (3000, 576), generator=generator).float()
    head = GroupedLinear([quantise(weight, "Q8_0")], None, packs=True)
    x = activations(40, 576) + 1
    assert highest_outputs(head, x) == best(linear(head, x))


@needs_library
def test_outputs_that_are_not_finite_are_told():
    head = GroupedLinear([quantise(alike(50, 64), "Q8_0")], None, packs=True)
    x = activations(3, 64)
    x[1] *= 1e38
    assert [token < 0 for token in highest_outputs(head, x)] == [False, True, False]


def logits(model, tokens):
    segments = [
        Segment(
            0, len(tokens), KVCache(model.transformer.config, 64, dtype=model.kv_dtype), "causal"
        )
    ]
    with torch.inference_mode():
        return model.logits(model.run(tokens, torch.arange(len(tokens)), segments))


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_stored_blocks_are_used_as_they_are(family):
    """The same numbers as floats in fp32 give the same logits, to what activations lose."""
    _, config, tensors = families.build(family)
    stored = {
        name: quantise(tensor, "Q8_0") if tensor.dim() == 2 else tensor
        for name, tensor in tensors.items()
    }
    floats = {
        name: tensor.floats() if isinstance(tensor, QuantisedMatrix) else tensor
        for name, tensor in stored.items()
    }
    tokens = torch.arange(3, 20)
    ours = logits(build_runner(config, stored.__getitem__, dtype="int4"), tokens)
    exact = logits(build_runner(config, floats.__getitem__, dtype="fp32"), tokens)
    assert float((ours - exact).norm() / exact.norm()) < 0.05
    again = logits(build_runner(config, stored.__getitem__, dtype="fp32"), tokens)
    assert torch.equal(again, exact)


def test_a_separate_embedding_stays_in_its_file():
    _, config, tensors = families.build("llama")
    assert not config.tie_word_embeddings
    stored = dict(tensors)
    stored["embed_tokens.weight"] = quantise(tensors["embed_tokens.weight"], "Q8_0")
    model = build_runner(config, stored.__getitem__, dtype="int4")
    kept = model.transformer.embedding.stored.blocks
    assert kept.data_ptr() == stored["embed_tokens.weight"].blocks.data_ptr()
    expected = stored["embed_tokens.weight"].floats()
    assert torch.equal(model.transformer.embedding(torch.tensor([5, 2])), expected[[5, 2]])
    assert torch.equal(model.transformer.embedding.matrix(), expected)


def compiled(directory):
    """The library with kernels for sixteen outputs that run on AVX2."""
    folder = Path(native.__file__).parent
    path = folder.parents[2] / "hatch_build.py"
    spec = importlib.util.spec_from_file_location("hatch_build", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    sources = [*folder.glob("*.cpp"), Path(__file__).with_name("emulated_kernels.cpp")]
    target = directory / "pass.so"
    build.compile_library(sources, target, "-O1", f"-I{folder}", "-DTRIMODE_EMULATED")
    return target


@pytest.mark.slow
@needs_library
def test_every_set_of_kernels_gives_the_same_bits(tmp_path):
    """Those of this machine, and those of AVX-512 VNNI with their instructions emulated."""
    ordinary = native.library()
    other = native.opened(compiled(tmp_path))
    names = []
    while (name := other.trimode_kernels(len(names))) is not None:
        names.append(name.decode())
    assert names[0] == "AVX2"
    assert names[-1] == "emulated"
    for kind in BLOCK_KINDS:
        weight = random_matrix(kind, 37, 768)
        bias = torch.randn(37, generator=torch.Generator().manual_seed(0))
        x = activations(21, 768)
        expected = GroupedLinear([weight], bias, packs=False)(x)
        for index in range(len(names)):
            other.trimode_use_kernels(index)
            with patched_library(other):
                packed = GroupedLinear([weight], bias, packs=True)
                for rows in (1, 2, 5, 8, 13, 21):
                    assert torch.equal(linear(packed, x[:rows]), expected[:rows]), names[index]
                assert torch.equal(packed.rows(torch.arange(37)), weight.floats())
    head = quantise(alike(301, 96), "Q8_0")
    expected = best(GroupedLinear([head], None, packs=False)(activations(21, 96)))
    for index in range(len(names)):
        other.trimode_use_kernels(index)
        with patched_library(other):
            packed = GroupedLinear([head], None, packs=True)
            for rows in (1, 2, 5, 8, 13, 21):
                found = highest_outputs(packed, activations(21, 96)[:rows])
                assert found == expected[:rows], names[index]
    assert ordinary is native.library()


@contextmanager
def patched_library(found):
    with (
        patch("trimode.model.formats.int4.library", return_value=found),
        patch("trimode.model.runners.native.library", return_value=found),
    ):
        yield
