import gguf
import numpy as np
import pytest
import torch

from trimode.checkpoints.gguf_file import open_gguf
from trimode.errors import CheckpointError
from trimode.model import as_floats

from .files import gguf_name, permute, random_tensors, small_config, write_gguf

CONFIG = small_config()
TENSORS = random_tensors(CONFIG)
WIDE = small_config(hidden_size=256, intermediate_size=256, num_heads=16, num_layers=1)
"""K-quants come in blocks of 256."""


STORED = {"F16": torch.float16, "BF16": torch.bfloat16}
"""Floats that stay as they are stored."""
READABLE = [*gguf.quants._type_traits, gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16]


@pytest.mark.parametrize("kind", [kind.name for kind in READABLE])
def test_every_type_is_dequantised_as_gguf_does(kind, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(WIDE), kind=kind)
    model = open_gguf(path)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for name in random_tensors(WIDE):
        tensor = stored[gguf_name(name)]
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        expected = torch.from_numpy(np.array(expected, dtype=np.float32))
        actual = as_floats(model.read(name))
        for projection, heads in ((".q_proj.", 16), (".k_proj.", 2)):
            actual = permute(actual, heads) if projection in name else actual
        assert actual.dtype == STORED.get(tensor.tensor_type.name, torch.float32)
        assert torch.equal(actual.float(), expected.reshape(actual.shape)), name


def test_llama_files_have_their_query_and_key_rows_put_back(tmp_path):
    model = open_gguf(write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS))
    assert all(torch.equal(as_floats(model.read(name)), tensor) for name, tensor in TENSORS.items())


def test_the_row_order_is_that_of_llama_cpps_converter():
    rows = torch.arange(2 * 8).float()[:, None]
    theirs = rows.reshape(2, 2, 4, 1).swapaxes(1, 2).reshape(rows.shape)
    assert torch.equal(permute(rows, 2), theirs)
    assert permute(rows, 2).flatten().tolist()[:4] == [0.0, 4.0, 1.0, 5.0]


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_other_architectures_are_read_as_they_are(architecture, tmp_path):
    config = small_config(qkv_bias=architecture == "qwen2", qk_norm=architecture == "qwen3")
    tensors = random_tensors(config)
    path = write_gguf(tmp_path / "m.gguf", config, tensors, architecture=architecture)
    model = open_gguf(path)
    assert (model.config.qkv_bias, model.config.qk_norm) == (config.qkv_bias, config.qk_norm)
    assert model.config.family == architecture
    assert all(torch.equal(as_floats(model.read(name)), tensor) for name, tensor in tensors.items())


def test_the_config_comes_from_the_metadata(tmp_path):
    extra = {
        "llama.rope.scaling.type": "linear",
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.chat_template": "{{ messages[0].content }}{{ eos_token }}",
    }
    model = open_gguf(write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata=extra))
    config = model.config
    assert (config.hidden_size, config.head_dim, config.num_kv_heads) == (64, 16, 2)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 4))
    assert config.rope.rope_type == "linear"
    assert not config.tie_word_embeddings
    assert model.chat_template is not None
    assert model.chat_template.render([{"role": "user", "content": "x"}]) == "xc"
    assert model.tokenizer.encode("ba") == [1, 0]


def test_the_mask_token_of_a_file_is_read(tmp_path):
    extra = {"tokenizer.ggml.mask_token_id": 7}
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata=extra)
    assert open_gguf(path).config.mask_token_id == 7
    bad = {"tokenizer.ggml.mask_token_id": "x"}
    path = write_gguf(tmp_path / "n.gguf", CONFIG, TENSORS, metadata=bad)
    with pytest.raises(CheckpointError, match=r"mask_token_id: 'x'; must be a token id"):
        open_gguf(path)


def test_a_file_without_an_output_tensor_is_tied(tmp_path):
    config = small_config(tie_word_embeddings=True)
    model = open_gguf(write_gguf(tmp_path / "m.gguf", config, random_tensors(config)))
    assert model.config.tie_word_embeddings
    assert model.chat_template is None


def test_rope_freqs_become_frequency_factors(tmp_path, monkeypatch):
    import tests.checkpoints.files as files

    monkeypatch.setitem(files.GGUF_NAMES, "rope_freqs", "rope_freqs")
    factors = torch.tensor([1.0, 1.0, 2.0, 8.0, 8.0, 8.0, 8.0, 8.0])
    path = write_gguf(tmp_path / "m.gguf", CONFIG, {**TENSORS, "rope_freqs.weight": factors})
    assert open_gguf(path).config.rope.frequency_factors == tuple(factors.tolist())


def test_an_unsupported_type_names_tensor_and_type(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", WIDE, random_tensors(WIDE), kind="Q8_1")
    with pytest.raises(CheckpointError, match=r"token_embd\.weight: type Q8_1; supported: F32"):
        open_gguf(path)


def test_an_unknown_architecture_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, architecture="bloom")
    with pytest.raises(CheckpointError, match=r"general\.architecture: 'bloom'; supported: llama"):
        open_gguf(path)


def test_an_unknown_tokenizer_is_named(tmp_path):
    extra = {"tokenizer.ggml.pre": "strange"}
    path = tmp_path / "m.gguf"
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre: 'strange'"):
        open_gguf(write_gguf(path, CONFIG, TENSORS, metadata=extra))


def test_partial_rotation_is_refused(tmp_path):
    extra = {"llama.rope.dimension_count": 8}
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, metadata=extra)
    with pytest.raises(CheckpointError, match=r"rope\.dimension_count"):
        open_gguf(path)


def test_a_missing_tensor_is_named(tmp_path):
    fewer = {name: t for name, t in TENSORS.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing \(norm\.weight\)"):
        open_gguf(write_gguf(tmp_path / "m.gguf", CONFIG, fewer))


def test_a_merge_of_unknown_tokens_is_named(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS, merges=["a c"])
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.merges: 'a c'"):
        open_gguf(path)


@pytest.mark.parametrize("keep", [0, 3, 4, 20, 200, 0.2, 0.5, 0.999])
def test_a_truncated_file_is_an_error_not_a_traceback(keep, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"m\.gguf"):
        open_gguf(path)


def test_garbage_is_an_error_not_a_traceback(tmp_path):
    generator = np.random.default_rng(0)
    for n in range(40):
        garbage = b"GGUF\x03\0\0\0" * (n % 2) + generator.bytes(400)
        (tmp_path / "m.gguf").write_bytes(garbage)
        with pytest.raises(CheckpointError):
            open_gguf(tmp_path / "m.gguf")


def test_flipped_metadata_bytes_never_cause_a_traceback(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, TENSORS)
    open_gguf(path)
    data = path.read_bytes()
    start, generator = data.index(b"general.architecture"), np.random.default_rng(1)
    refused = 0
    for at in generator.integers(start, start + 700, 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            open_gguf(path)
        except CheckpointError:
            refused += 1
    assert refused
