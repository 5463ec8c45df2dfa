import errno
import json
import weakref

import pytest
import torch
import transformers
from safetensors import safe_open

from tests.reference import families
from tests.reference.families import FAMILIES
from tests.reference.tiny import letters
from trimode.checkpoints import save_checkpoint, stream_checkpoint
from trimode.checkpoints.hf_config import read_config
from trimode.checkpoints.safetensors_dir import open_weights
from trimode.errors import CheckpointError
from trimode.text import ChatTemplate

from .files import random_tensors, small_config

CONFIG = small_config()
TENSORS = random_tensors(CONFIG)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_what_we_save(name, tmp_path):
    oracle, config, tensors = families.build(name)
    save_checkpoint(tmp_path / "m", config, tensors.items())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", attn_implementation="eager"
    ).eval()
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        assert torch.equal(theirs(tokens).logits, oracle(tokens).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_of_tensors_makes_the_same_checkpoint(name, tmp_path):
    _, config, tensors = families.build(name)
    save_checkpoint(tmp_path / "whole", config, tensors.items(), tokenizer=letters())
    names = sorted(tensors)  # any order
    for target, most_bytes in (("one", 2**30), ("several", 20_000)):
        stream = ((name, tensors[name]) for name in names)
        stream_checkpoint(
            tmp_path / target, config, stream, names, torch.float32, tokenizer=letters(),
            most_bytes=most_bytes,
        )  # fmt: skip
        read = open_weights(tmp_path / target, config)
        whole = open_weights(tmp_path / "whole", config)
        assert all(torch.equal(read(name), whole(name)) for name in names)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / target / file).read_bytes() == (
                tmp_path / "whole" / file
            ).read_bytes()
    assert (tmp_path / "one/model.safetensors").exists()
    assert len(list((tmp_path / "several").glob("model-*-of-*.safetensors"))) > 1
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "several")
    assert torch.equal(
        oracle.get_input_embeddings().weight.detach(), tensors["embed_tokens.weight"]
    )


def test_a_stream_is_not_kept(tmp_path):
    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for name, tensor in TENSORS.items():
            made = tensor.clone()
            alive.add(made)
            most = max(most, len(alive))
            yield name, made

    stream_checkpoint(tmp_path / "m", CONFIG, stream(), list(TENSORS), torch.float32)
    assert most <= 3
    assert len(TENSORS) > 12


def test_the_nld_layout_has_nvidias_names_and_comes_back(tmp_path):
    config = small_config(
        family="nemotron_labs_diffusion", mask_token_id=9, block_length=16, trained_to_denoise=True
    )
    tensors = random_tensors(config, torch.bfloat16)
    save_checkpoint(tmp_path / "m", config, tensors.items())
    with safe_open(tmp_path / "m/model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert len(names) == 9 * config.num_layers + 3
    assert {"encoder.embed_tokens.weight", "diffusion_head.weight", "encoder.norm.weight"} <= names
    assert all(name.startswith(("encoder.", "diffusion_head.")) for name in names)
    fields = json.loads((tmp_path / "m/config.json").read_text())
    assert fields["dtype"] == "bfloat16"
    again = read_config(tmp_path / "m/config.json")
    assert again == config
    read = open_weights(tmp_path / "m", again)
    assert all(torch.equal(read(name), tensor) for name, tensor in tensors.items())


def test_tokenizer_and_template_are_saved_beside(tmp_path):
    template = ChatTemplate("{{ messages[0].content }}")
    save_checkpoint(
        tmp_path / "m", CONFIG, TENSORS.items(), tokenizer=letters(), chat_template=template
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert theirs.encode("cab") == letters().encode("cab")
    assert theirs.chat_template == template.source
    assert theirs.eos_token == "c"


def test_an_earlier_checkpoint_of_ours_is_replaced(tmp_path):
    save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items())
    changed = {**TENSORS, "norm.weight": torch.full((64,), 3.0)}
    save_checkpoint(tmp_path / "m", CONFIG, changed.items())
    assert open_weights(tmp_path / "m", CONFIG)("norm.weight")[0] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("name", ["config.json", "notes.txt"])
def test_a_directory_that_is_not_ours_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match="holds something else"):
        save_checkpoint(tmp_path, CONFIG, TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "{}"


def test_a_directory_that_is_not_ours_is_replaced_when_asked(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/notes.txt").write_text("x")
    save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items(), overwrite=True)
    assert not (tmp_path / "m/notes.txt").exists()
    assert (tmp_path / "m/config.json").exists()


def test_a_file_in_the_way_is_never_replaced(tmp_path):
    (tmp_path / "m").write_text("x")
    with pytest.raises(CheckpointError):
        save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items(), overwrite=True)
    assert (tmp_path / "m").read_text() == "x"


@pytest.mark.parametrize("before", [True, False], ids=["replacing", "new"])
def test_a_full_disk_leaves_what_was_there(before, tmp_path, monkeypatch):
    if before:
        save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items())

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trimode.checkpoints.save.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == (["m"] if before else [])
    if before:
        open_weights(tmp_path / "m", CONFIG)


def test_a_rename_that_fails_puts_the_old_checkpoint_back(tmp_path, monkeypatch):
    from pathlib import Path

    save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items())
    rename = Path.rename

    def refuse(self, target):
        if ".partial-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    open_weights(tmp_path / "m", CONFIG)


def test_tensors_that_do_not_fit_the_config_are_refused_before_writing(tmp_path):
    fewer = {name: t for name, t in TENSORS.items() if name != "norm.weight"}
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        save_checkpoint(tmp_path / "m", CONFIG, fewer.items())
    assert not (tmp_path / "m").exists()


def test_all_files_are_readable_by_the_same_people(tmp_path):
    save_checkpoint(tmp_path / "m", CONFIG, TENSORS.items())
    assert len({path.stat().st_mode for path in (tmp_path / "m").iterdir()}) == 1
