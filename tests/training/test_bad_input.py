"""What is wrong with a run's input is named, and a run that exists loses nothing by it."""

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.runs import config_of, run, weights
from trimode.errors import CheckpointError, InputError, TrimodeError
from trimode.training import run_directory
from trimode.training.trainer import Trainer

GOOD = json.dumps({"prompt": "a", "completion": "b"})
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", ', "line 3: not JSON"),
        ('["a"]', "line 3: list; must be a JSON object"),
        ('{"prompt": "a", "completion": ""}', "line 3: completion: empty"),
        (
            json.dumps({"messages": [ANSWER, ANSWER | {"content": " "}]}),
            r"line 3: messages\[1\]\.content: empty",
        ),
        (json.dumps({"prompt": "a", "completion": "b" * 200}), r"line 3: \d+ tokens; at most"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(base, tmp_path, line, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(InputError, match=words):
        Trainer(config_of(base, path, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_context_are_refused(base, data, tmp_path):
    rows = {"files": [str(data)], "sequence_length": 1025}
    with pytest.raises(InputError, match=r"data\.sequence_length: 1025; at most .* 1024"):
        Trainer(config_of(base, data, tmp_path / "run", data=rows), progress=False)


def test_data_that_has_changed_is_refused_and_the_run_stays(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=3))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    data.write_text(f"{GOOD}\n")
    with pytest.raises(InputError, match="holds a run with data_sha256"):
        Trainer(config_of(base, data, tmp_path / "run"), progress=False)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_weights_of_another_model_in_a_checkpoint_are_refused(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=3))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    tensors = load_file(checkpoint / "weights.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(3, 3)}, checkpoint / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \[3, 3\]; a checkpoint of this run"):
        run(config_of(base, data, tmp_path / "run"))


def test_a_gradient_that_is_no_number_spoils_no_checkpoint(base, data, tmp_path):
    options = {"save_every": 1, "keep_checkpoints": 9}
    trainer = Trainer(config_of(base, data, tmp_path / "run", **options), progress=False)

    def spoil(gradient):
        return gradient * float("inf") if trainer.step == 3 else gradient

    trainer.trained[0].parameter.register_hook(spoil)
    with pytest.raises(TrimodeError, match=r"gradient norm of step 4 is (nan|inf)"):
        trainer.run()
    assert [step for step, _ in trainer.directory.checkpoints()] == [1, 2, 3]
    slower = {"learning_rate": 1e-4, "warmup_steps": 5, "clip": 0.5}
    again, done = run(config_of(base, data, tmp_path / "run", optimiser=slower, **options))
    assert done
    assert all(bool(value.isfinite().all()) for value in weights(again).values())


@pytest.mark.parametrize("change", ["unknown", "missing"])
def test_moments_of_another_model_in_a_checkpoint_are_refused(base, data, tmp_path, change):
    run(config_of(base, data, tmp_path / "run", steps=3))
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    moments = load_file(checkpoint / "optimiser.safetensors")
    if change == "unknown":
        moments["elsewhere.exp_avg"] = torch.zeros(1)
    else:
        del moments[next(iter(moments))]
    save_file(moments, checkpoint / "optimiser.safetensors")
    with pytest.raises(CheckpointError, match=f"{change}; a checkpoint of this run"):
        run(config_of(base, data, tmp_path / "run"))


def test_a_disk_that_fills_up_at_the_metrics_costs_no_step(base, data, tmp_path, monkeypatch):
    config = config_of(base, data, tmp_path / "run", save_every=2)
    append, rows = run_directory.RunDirectory.log, []

    def log(self, row):
        if row["step"] == 4 and not rows:
            rows.append(row)
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write('{"step": 4, "lo')  # what fitted
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, row)

    monkeypatch.setattr(run_directory.RunDirectory, "log", log)
    with pytest.raises(OSError, match="No space left"):
        run(config)
    again, done = run(config)
    assert done
    whole, _ = run(config_of(base, data, tmp_path / "whole"))
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
