"""Hugging Face and NLD directories: read, saved, and refused when something is wrong."""

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.reference.families import FAMILIES, build
from trimode import generate, load
from trimode.checkpoints import save_checkpoint
from trimode.checkpoints.families import FAMILIES as OUR_FAMILIES
from trimode.checkpoints.hf_config import read_config
from trimode.checkpoints.safetensors_dir import open_weights
from trimode.errors import CheckpointError, InputError
from trimode.model import expected_tensors
from trimode.testing import byte_tokenizer, tiny_config, tiny_tensors, write_tiny_checkpoint

FAMILY_NAMES = tuple(OUR_FAMILIES)


@pytest.fixture
def checkpoint(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model")


def edit(checkpoint, change):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refusal(checkpoint):
    with pytest.raises(CheckpointError) as error:
        load(checkpoint)
    return str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shard_size", ["10GB", "40KB"])
def test_what_transformers_saves_is_read_bit_for_bit(tmp_path, family, shard_size):
    model, _, tensors = build(family)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    config = read_config(tmp_path / "config.json")
    read = open_weights(tmp_path, config)
    for name in expected_tensors(config):
        assert torch.equal(read(name), tensors[name]), name


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_checkpoint_loads_with_the_same_tensors(tmp_path, family):
    path = write_tiny_checkpoint(tmp_path / "model", family)
    config = tiny_config(family)
    read = open_weights(path, read_config(path / "config.json"))
    for name, tensor in tiny_tensors(config).items():
        assert torch.equal(read(name), tensor)
    assert load(path).config == config


@pytest.mark.parametrize("family", FAMILY_NAMES[1:])
def test_a_saved_checkpoint_opens_in_transformers_with_the_same_answer(tmp_path, family):
    path = write_tiny_checkpoint(tmp_path / "model", family)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    prompt = [5, 90, 30, 200]
    ours = generate(load(path, dtype="fp32"), prompt, max_tokens=8, ignore_eos=True).token_ids
    theirs = oracle.generate(
        torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert list(ours) == theirs[0, 4:].tolist()


def test_nld_checkpoints_have_the_published_names_and_fields(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    layers = config["num_hidden_layers"]
    assert len(names) == 9 * layers + 3
    assert {"encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"} <= names
    assert f"encoder.layers.{layers - 1}.self_attn.o_proj.weight" in names
    assert config["model_type"] == "nemotron_labs_diffusion"
    assert config["architectures"] == ["NemotronLabsDiffusionModel"]
    assert config["dlm_paradigm"] == "bidirectional"
    assert {"mask_token_id", "block_size", "rope_parameters", "tie_word_embeddings"} <= set(config)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal_names_are_read_and_what_is_not_text_is_ignored(checkpoint, prefix):
    head = "language_model.lm_head." if prefix.startswith("language") else "lm_head."

    def rename(tensors):
        for name in list(tensors):
            new = name.replace("encoder.", prefix).replace("diffusion_head.", head)
            tensors[new] = tensors.pop(name)
        tensors["encoder.vision_tower.conv.weight"] = torch.zeros(2)
        tensors["model.multi_modal_projector.linear.weight"] = torch.zeros(2)
        tensors["base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight"] = torch.zeros(2)

    edit(checkpoint, rename)
    assert load(checkpoint).config.num_layers == 2


def test_a_missing_tensor_is_named(checkpoint):
    edit(checkpoint, lambda tensors: tensors.pop("encoder.layers.1.mlp.up_proj.weight"))
    assert "1 missing (layers.1.mlp.up_proj.weight)" in refusal(checkpoint)


def test_an_unknown_tensor_is_named_with_the_nearest_name(checkpoint):
    def rename(tensors):
        tensors["encoder.layers.1.mlp.upproj.weight"] = tensors.pop(
            "encoder.layers.1.mlp.up_proj.weight"
        )

    edit(checkpoint, rename)
    message = refusal(checkpoint)
    assert "1 unknown (layers.1.mlp.upproj.weight" in message
    assert "nearest expected name layers.1.mlp.up_proj.weight" in message


def test_a_misshapen_tensor_is_named_with_both_shapes(checkpoint):
    edit(checkpoint, lambda tensors: tensors.update({"encoder.norm.weight": torch.zeros(31)}))
    assert "norm.weight is [31], expected [32]" in refusal(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_an_unsupported_dtype_is_named(checkpoint, dtype):
    edit(checkpoint, lambda t: t.update({"encoder.norm.weight": torch.zeros(32, dtype=dtype)}))
    assert re.search(r"encoder.norm.weight: (F64|I8); supported: F32", refusal(checkpoint))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_weights_are_a_checkpoint_error(checkpoint, share):
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors: not readable" in refusal(checkpoint)


def test_a_missing_shard_is_named(tmp_path):
    model, _, _ = build("llama")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: missing"):
        open_weights(tmp_path, read_config(tmp_path / "config.json"))


def test_a_whole_file_is_read_whatever_the_index_beside_it_says(checkpoint):
    stale = {"weight_map": {"encoder.norm.weight": "model-00001-of-00002.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(stale))
    assert load(checkpoint).config.num_layers == 2


@pytest.mark.parametrize("text", ["{}", "[]", "{", "[" * 200_000, '{"weight_map": {"a": "../b"}}'])
def test_a_damaged_index_is_a_checkpoint_error(checkpoint, text):
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(text)
    assert "index.json: not readable" in refusal(checkpoint)


def test_a_missing_tokenizer_is_named(checkpoint):
    (checkpoint / "tokenizer.json").unlink()
    assert "tokenizer.json" in refusal(checkpoint)


def test_a_prompt_with_a_token_that_the_model_has_no_row_for_is_refused(tmp_path):
    config = tiny_config(vocab_size=258, mask_token_id=3, eos_token_ids=(2,))
    path = tmp_path / "model"
    save_checkpoint(path, config, tiny_tensors(config).items(), tokenizer=byte_tokenizer())
    model = load(path, dtype="fp32")
    assert model.tokenizer.vocab_size == 261
    assert generate(model, "abc", raw=True, max_tokens=2, ignore_eos=True).token_ids
    with pytest.raises(InputError, match=r"token id 258; ids are 0\.\.257"):
        generate(model, "abc<|im_end|>", raw=True, max_tokens=2)


def test_stop_tokens_of_the_generation_config_count(checkpoint):
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [5, 258]}')
    assert load(checkpoint).config.eos_token_ids == (258, 5)


def test_a_directory_that_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something else"):
        write_tiny_checkpoint(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_checkpoint_is_replaced_whole(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model")
    (path / "stale.json").write_text("{}")
    write_tiny_checkpoint(path, "llama")
    assert load(path).config.family == "llama"
    assert not (path / "stale.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_leaves_nothing_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = write_tiny_checkpoint(tmp_path / "model", "llama")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimode.checkpoints.save.save_file", full)
    for target in (path, tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            write_tiny_checkpoint(target)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert load(path).config.family == "llama"


def test_nothing_is_read_of_subfolders(checkpoint):
    shutil.copytree(checkpoint, checkpoint / "other")
    assert load(checkpoint).config.family == "nemotron_labs_diffusion"


@pytest.mark.parametrize("sharded", [False, True])
def test_files_of_torch_save_are_read(tmp_path, sharded):
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    tensors = load_file(path / "model.safetensors")
    expected = generate(load(path, dtype="fp32"), [5, 90], max_tokens=6, ignore_eos=True)
    (path / "model.safetensors").unlink()
    if sharded:
        names = sorted(tensors)
        parts = {"a.bin": names[::2], "b.bin": names[1::2]}
        for name, part in parts.items():
            torch.save({n: tensors[n] for n in part}, path / name)
        index = {"weight_map": {n: name for name, part in parts.items() for n in part}}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(tensors, path / "pytorch_model.bin")
    found = generate(load(path, dtype="fp32"), [5, 90], max_tokens=6, ignore_eos=True)
    assert found.token_ids == expected.token_ids


class Dangerous:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("content", [Dangerous(), {"x": Dangerous()}, {"x": 3}, [1], b"x" * 40])
def test_a_pickle_that_is_no_state_dict_is_refused_and_not_run(tmp_path, content, capsys):
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    (path / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (path / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, path / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(path)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["norm.weight", "lm_head.weight", "layers.1.input_layernorm.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_numbers_that_are_not_finite_are_named(tmp_path, name, value, dtype):
    path = write_tiny_checkpoint(tmp_path / "model", "llama")
    published = name if name.startswith("lm_head") else f"model.{name}"
    edit(path, lambda tensors: tensors[published].view(-1)[:1].fill_(value))
    with pytest.raises(CheckpointError, match=rf"{name}: NaN or infinite"):
        load(path, dtype=dtype)
