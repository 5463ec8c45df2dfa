"""Files of the built-in model in llama.cpp's formats."""

from importlib.util import find_spec

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from benchmarks.lib.gguf_files import KINDS, _quantiser, format_of, gguf_file
from trimode.checkpoints import resolve

needs_llama = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs xllamacpp")


@pytest.mark.real
def test_formats_are_those_of_a_file_that_llama_cpp_made(real_cache):
    source = resolve("smollm2-135m-instruct").path
    matrices = [t for t in gguf.GGUFReader(source).tensors if len(t.shape) > 1]
    assert len(matrices) == 211
    for tensor in matrices:
        columns = int(tensor.shape[0])
        assert format_of(tensor.name, "Q4_1", 30, columns, tied=True) == tensor.tensor_type


@pytest.mark.parametrize(
    ("name", "kind", "columns", "expected"),
    [
        ("blk.5.attn_q.weight", "Q4_K_M", 2048, Type.Q4_K),
        ("blk.5.attn_q.weight", "Q4_K_M", 576, Type.Q5_0),
        ("blk.0.ffn_down.weight", "Q4_K_M", 1536, Type.Q6_K),
        ("blk.3.ffn_down.weight", "Q4_K_M", 1536, Type.Q4_K),
        ("blk.0.attn_v.weight", "Q4_K_M", 576, Type.Q8_0),
        ("blk.29.attn_v.weight", "Q4_K_M", 2048, Type.Q6_K),
        ("token_embd.weight", "Q4_0", 2048, Type.Q6_K),
        ("token_embd.weight", "Q4_0", 576, Type.Q8_0),
        ("token_embd.weight", "Q8_0", 576, Type.Q8_0),
    ],
)
def test_matrices_of_mixed_files(name, kind, columns, expected):
    assert format_of(name, kind, 30, columns, tied=True) == expected


def test_an_embedding_beside_a_head_is_an_ordinary_matrix():
    assert format_of("token_embd.weight", "Q4_0", 30, 2048, tied=False) == Type.Q4_0
    assert format_of("output.weight", "Q4_0", 30, 2048, tied=False) == Type.Q6_K


@needs_llama
@pytest.mark.parametrize("fmt", [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q8_0], ids=lambda t: t.name)
def test_rows_are_quantised_as_ggufs_own_code_does(fmt):
    values = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    assert np.array_equal(_quantiser()(values, fmt), gguf.quants.quantize(values, fmt))


@needs_llama
@pytest.mark.parametrize(("fmt", "error"), [(Type.Q4_K, 0.08), (Type.Q6_K, 0.02)])
def test_superblocks_are_near_what_they_stand_for(fmt, error):
    values = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    found = gguf.quants.dequantize(_quantiser()(values, fmt), fmt)
    assert np.sqrt(np.mean((found - values) ** 2)) < error


@needs_llama
@pytest.mark.real
@pytest.mark.peers
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_holds_every_tensor(kind, real_cache, tmp_path):
    source = resolve("smollm2-135m-instruct").path
    made = gguf.GGUFReader(gguf_file(kind, tmp_path))
    names = [(t.name, tuple(t.shape)) for t in gguf.GGUFReader(source).tensors]
    assert [(t.name, tuple(t.shape)) for t in made.tensors] == names
