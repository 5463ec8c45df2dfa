"""Two gloo processes under `torchrun` against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trimode.testing.tiny import write_tiny_checkpoint

TRIMODE = str(Path(sys.executable).with_name("trimode"))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_tiny_checkpoint(folder / "base", "llama")
    rows = [{"prompt": f"p{i}", "completion": f"answer {i} " * (i + 1)} for i in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(setting, output, processes, steps, *more):
    command = [TRIMODE]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", str(processes), TRIMODE]  # fmt: skip
    command += ["train", "joint", "-m", setting / "base", "--data", setting / "data.jsonl",
                "-o", output, "--steps", steps, "--no-progress",
                "--set", "data.sequence_length=128", "--set", "batch_size=4",
                "--set", "save_every=2", "--set", "optimiser.warmup_steps=2",
                "--set", "ema_decay=0.9", *more]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]


def losses(output):
    return [
        json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()
    ]


def weights(output, name="model.safetensors"):
    return load_file(output / "final" / name)


@pytest.mark.parametrize("kind", ["everything", "adapter"])
def test_two_processes_train_as_one_does(setting, tmp_path, kind):
    more = ("--set", f"train={kind}", "--set", "adapter.rank=4")
    if kind == "adapter":
        more += ("--set", "step.objective.distillation_loss_weight=1")
    train(setting, tmp_path / "one", 1, 4, *more)
    train(setting, tmp_path / "two", 2, 4, *more)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    name = "model.safetensors" if kind == "everything" else "adapter_model.safetensors"
    one, two = weights(tmp_path / "one", name), weights(tmp_path / "two", name)
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("first", "second"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_checkpoint_is_continued_by_another_number_of_processes(setting, tmp_path, first, second):
    train(setting, tmp_path / "whole", 1, 4)
    train(setting, tmp_path / "cut", first, 2)
    train(setting, tmp_path / "cut", second, 4)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
