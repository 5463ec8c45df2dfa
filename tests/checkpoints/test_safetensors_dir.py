import json

import pytest
import torch
from safetensors.torch import save_file

from tests.reference import families
from tests.reference.families import FAMILIES
from trimode.checkpoints.hf_config import read_config
from trimode.checkpoints.safetensors_dir import open_weights
from trimode.errors import CheckpointError

from .files import published, random_tensors, small_config

CONFIG = small_config()


@pytest.fixture
def directory(tmp_path):
    save_file(published(CONFIG, random_tensors(CONFIG)), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("shard", ["1GB", "50KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_saves_is_read_to_the_bit(name, shard, tmp_path):
    oracle, _, tensors = families.build(name)
    oracle.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "50KB")
    read = open_weights(tmp_path, read_config(tmp_path / "config.json"))
    for canonical, tensor in tensors.items():
        assert torch.equal(read(canonical), tensor), canonical


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_type(dtype, tmp_path):
    tensors = random_tensors(CONFIG, dtype)
    save_file(published(CONFIG, tensors), tmp_path / "model.safetensors")
    read = open_weights(tmp_path, CONFIG)
    assert torch.equal(read("norm.weight"), tensors["norm.weight"])
    assert read("norm.weight").dtype == dtype


def test_nld_names_with_vision_and_adapter_tensors_beside_are_read(tmp_path):
    config = small_config(family="nemotron_labs_diffusion", trained_to_denoise=True)
    tensors = random_tensors(config)
    extra = {
        "encoder.vision_tower.patch.weight": torch.zeros(2),
        "encoder.multi_modal_projector.linear_1.weight": torch.zeros(2),
        "base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight": torch.zeros(2),
    }
    save_file({**published(config, tensors), **extra}, tmp_path / "model.safetensors")
    read = open_weights(tmp_path, config)
    assert all(torch.equal(read(name), tensor) for name, tensor in tensors.items())


def test_adapters_and_subfolders_are_not_picked_up(directory):
    (directory / "linear_spec_lora").mkdir()
    for name in ("adapter_model.safetensors", "linear_spec_lora/adapter_model.safetensors"):
        save_file({"other": torch.zeros(1)}, directory / name)
    assert open_weights(directory, CONFIG)("norm.weight").shape == (64,)


def test_a_tied_checkpoint_may_hold_the_head_or_not(tmp_path):
    config = small_config(tie_word_embeddings=True)
    tensors = published(config, random_tensors(config))
    save_file(tensors, tmp_path / "model.safetensors")
    open_weights(tmp_path, config)
    save_file({**tensors, "lm_head.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    open_weights(tmp_path, config)


@pytest.mark.parametrize("padding", range(1, 8))
def test_tensors_at_odd_places_are_read(padding, directory):
    path = directory / "model.safetensors"
    expected = {name: t.clone() for name, t in random_tensors(CONFIG).items()}
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].rstrip() + b" " * padding
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    read = open_weights(directory, CONFIG)
    assert all(torch.equal(read(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_a_truncated_file_is_refused_before_reading(keep, directory):
    path = directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not readable"):
        open_weights(directory, CONFIG)


def test_an_unsupported_dtype_names_the_tensor(directory):
    tensors = published(CONFIG, random_tensors(CONFIG))
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: F8_E4M3; supported: F32"):
        open_weights(directory, CONFIG)


def test_two_tensors_of_one_meaning_are_refused(directory):
    tensors = published(CONFIG, random_tensors(CONFIG))
    save_file({**tensors, "encoder.norm.weight": torch.ones(64)}, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match="each tensor once"):
        open_weights(directory, CONFIG)


def test_a_missing_weight_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        open_weights(tmp_path, CONFIG)


def test_a_shard_that_the_index_names_must_exist(tmp_path):
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors: missing"):
        open_weights(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "../b"}}',
     '{"weight_map": {"a": ["b"]}}'],
)  # fmt: skip
def test_a_damaged_index_is_an_error_not_a_traceback(text, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        open_weights(tmp_path, CONFIG)
