"""What is refused before a run's long parts, and what a run needs of the machine."""

import json
import shutil

import pytest
import torch

from tests.training.runs import config_of, metrics, run, weights
from trimode.checkpoints import load, open_checkpoint
from trimode.errors import InputError
from trimode.testing.tiny import tiny_config, write_tiny_checkpoint
from trimode.training import RECIPES, preflight, resources
from trimode.training.config import read_train_config
from trimode.training.trainer import Trainer

ADAPTER = {"train": "adapter", "adapter": {"rank": 2}, "export_dtype": "fp32"}


@pytest.fixture
def stock(tmp_path):
    """No mask token, and an embedding whose unused rows are zero."""
    path = write_tiny_checkpoint(tmp_path / "stock", "llama", vocab_size=300, mask_token_id=None,
                                 hidden_size=64, intermediate_size=128)  # fmt: skip
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors[name][261:] = 0
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_a_run_without_a_mask_token_chooses_one_and_saves_it(stock, data, tmp_path, capsys):
    config = config_of(stock, data, tmp_path / "run", steps=2, mask_token=None, **ADAPTER)
    trainer = Trainer(config)
    assert trainer.model.config.mask_token_id == 256  # <|mask|> is in this vocabulary
    assert "mask token: <|mask|> (id 256)" in capsys.readouterr().err
    trainer.run()
    assert open_checkpoint(stock).config.mask_token_id is None
    model = load(stock, adapter=tmp_path / "run" / "final", dtype="fp32")
    assert model.config.mask_token_id == 256
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["mask_token_id"] == 256


@pytest.mark.parametrize("train", ["adapter", "everything"])
def test_a_mask_token_with_an_empty_embedding_learns_one(stock, data, tmp_path, train):
    more = ADAPTER if train == "adapter" else {}
    config = config_of(stock, data, tmp_path / "run", steps=3, mask_token=299, **more)
    trainer, done = run(config)
    assert done
    assert trainer.model.config.mask_token_id == 299
    matrix = trainer.transformer.embedding.weight
    row = trainer.transformer.mask_embedding if train == "adapter" else matrix[299]
    assert row.norm() > 0.01
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in metrics(config))
    if train == "everything":
        assert load(tmp_path / "run" / "final").config.mask_token_id == 299


def test_a_run_is_not_continued_with_another_mask_token(stock, data, tmp_path):
    run(config_of(stock, data, tmp_path / "run", steps=1, mask_token=299, **ADAPTER))
    with pytest.raises(InputError, match="mask_token_id 299, not 298"):
        Trainer(config_of(stock, data, tmp_path / "run", mask_token=298, **ADAPTER))


def test_an_occupied_output_is_refused_before_weights_are_read(base, data, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    monkeypatch.setattr("trimode.checkpoints.loader.Checkpoint.build", None)
    with pytest.raises(InputError, match="run is not empty"):
        Trainer(config_of(base, data, tmp_path / "run"))


def test_a_disk_that_is_too_small_is_refused_with_figures(base, data, tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10, 10, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"output: .* needs 0\.\d GB, 0\.0 GB are free; another"):
        Trainer(config_of(base, data, tmp_path / "run"))


def test_too_little_memory_is_refused_or_said(base, data, tmp_path, monkeypatch, capsys):
    config = config_of(base, data, tmp_path / "run")
    monkeypatch.setattr(preflight, "free_memory", lambda: 1000)
    Trainer(config)
    assert "memory: about 0." in capsys.readouterr().err
    monkeypatch.setattr(preflight, "machine_memory", lambda: 1000)
    with pytest.raises(
        InputError, match=r"memory: about 0\.\d GB needed, .*lower micro_batch_size"
    ):
        Trainer(config)


def test_the_estimate_of_a_half_billion_model_is_what_was_measured():
    """4 layers: 2.56 and 1.97 GB; 24 layers: 3.8 GB (a run of each, peak of the process)."""
    shape = {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_heads": 14,
             "num_kv_heads": 2, "head_dim": 64, "tie_word_embeddings": True}  # fmt: skip
    fields = {"output": "x", "data.files": ["y"]}
    config = read_train_config(RECIPES / "denoise.yaml", fields)
    for layers, recompute, measured in ((4, False, 2.56), (4, True, 1.97), (24, None, 3.82)):
        model = tiny_config("qwen2", num_layers=layers, **shape)
        config = read_train_config(RECIPES / "denoise.yaml", fields | {"recompute": recompute})
        estimate = resources.peak_bytes(config, model) / 1e9
        assert abs(estimate / measured - 1) < 0.2, (layers, recompute, estimate)
    assert resources.recomputes(config, model)


def test_recomputing_changes_no_number(base, data, tmp_path):
    found = [
        weights(run(config_of(base, data, tmp_path / f"{flag}", recompute=flag, **ADAPTER))[0])
        for flag in (False, True)
    ]
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


def test_the_sources_files_and_tokens_are_kept(base, data, tmp_path):
    extras = {
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<think>", "x": 1},
        "generation_config.json": {"eos_token_id": [258, 260], "temperature": 0.6},
        "special_tokens_map.json": {"pad_token": "<think>"},
    }
    for name, fields in extras.items():
        (base / name).write_text(json.dumps(fields))
    config = json.loads((base / "config.json").read_text())
    config |= {"eos_token_id": [260, 258], "pad_token_id": 259}
    (base / "config.json").write_text(json.dumps(config))
    run(config_of(base, data, tmp_path / "run", steps=1))
    final = tmp_path / "run" / "final"
    for name in (*extras, "tokenizer.json"):
        assert (final / name).read_bytes() == (base / name).read_bytes(), name
    saved = json.loads((final / "config.json").read_text())
    assert (saved["eos_token_id"], saved["pad_token_id"]) == ([260, 258], 259)
    source, result = load(base), load(final)
    assert set(result.config.eos_token_ids) == set(source.config.eos_token_ids)
    assert result.tokenizer.eos_token_id == source.tokenizer.eos_token_id


def test_an_error_names_the_field_and_the_rule_only(base, data, tmp_path):
    step = {"blocks": {"block_length": 16, "placement": "random", "noisy_tokens": 40}}
    with pytest.raises(InputError) as caught:
        config_of(base, data, tmp_path / "run", step=step)
    assert str(caught.value) == "step.blocks.noisy_tokens: 40; must be a multiple of 16"


def test_an_evaluation_with_nothing_to_measure_says_so_once(base, data, tmp_path, capsys):
    trainer = Trainer(config_of(base, data, tmp_path / "run", evaluation={"every": 1}))
    trainer.run()
    errors = capsys.readouterr().err
    assert errors.count("evaluation: nothing to measure") == 1
    assert "step 1: \n" not in errors
