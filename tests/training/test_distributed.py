"""Two gloo processes under `torchrun` against one process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trimode.errors import InputError
from trimode.testing.tiny import write_tiny_checkpoint
from trimode.training.config import DataConfig, TrainConfig
from trimode.training.distributed import start
from trimode.training.run_directory import RunDirectory

TRIMODE = str(Path(sys.executable).with_name("trimode"))


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    write_tiny_checkpoint(folder / "base", "llama")
    rows = [{"prompt": f"p{i}", "completion": f"answer {i} " * (i + 1)} for i in range(6)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command_of(setting, output, processes, steps, *more):
    command = [TRIMODE]
    if processes > 1:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node", str(processes), TRIMODE]  # fmt: skip
    command += ["train", "joint", "-m", setting / "base", "--data", setting / "data.jsonl",
                "-o", output, "--steps", steps, "--no-progress",
                "--set", "data.sequence_length=128", "--set", "batch_size=4",
                "--set", "save_every=2", "--set", "optimiser.warmup_steps=2",
                "--set", "ema_decay=0.9", *more]  # fmt: skip
    return list(map(str, command))


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def train(setting, output, processes, steps, *more):
    command = command_of(setting, output, processes, steps, *more)
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


def losses(output):
    return [
        json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()
    ]


def weights(output, name="model.safetensors"):
    return load_file(output / "final" / name)


@pytest.mark.parametrize("kind", ["everything", pytest.param("adapter", marks=pytest.mark.slow)])
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


ADAPTER = ("--set", "train=adapter", "--set", "adapter.rank=4")


@pytest.mark.parametrize(
    ("first", "second", "more"),
    [
        pytest.param(2, 1, (), marks=pytest.mark.slow),
        pytest.param(1, 2, (), marks=pytest.mark.slow),
        pytest.param(4, 2, (), marks=pytest.mark.slow),
        pytest.param(
            2, 4, ("--set", "train=adapter", "--set", "adapter.rank=4"), marks=pytest.mark.slow
        ),
        pytest.param(4, 2, ("--set", "replicate=2"), marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_is_continued_by_another_number_of_processes(
    setting, tmp_path, first, second, more
):
    alone = () if "replicate=2" in more else more
    train(setting, tmp_path / "whole", 1, 4, *alone)
    train(setting, tmp_path / "cut", first, 2, *more)
    (checkpoint,) = (tmp_path / "cut" / "checkpoints").iterdir()
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {"state.json", "shards"} if first > 1 else "weights.safetensors" in names
    if first > 1 and not more:  # no file holds much more than its share
        sizes = [path.stat().st_size for path in (checkpoint / "shards").glob("*.distcp")]
        assert len(sizes) == first
        assert max(sizes) < 1.2 * sum(sizes) / first
    train(setting, tmp_path / "cut", second, 4, *alone)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)
    if not more:
        one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, atol=2e-4, rtol=2e-4)


@pytest.mark.slow
def test_copies_of_the_weights_train_as_one_process_does(setting, tmp_path):
    train(setting, tmp_path / "one", 1, 4)
    train(setting, tmp_path / "four", 4, 4, "--set", "replicate=2")
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    for key, value in one.items():
        torch.testing.assert_close(four[key], value, atol=2e-4, rtol=2e-4)


def test_copies_that_the_processes_cannot_be_shared_out_to_are_refused(monkeypatch):
    for count, replicate in ((1, 2), (4, 3), (2, 4)):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        with pytest.raises(InputError, match=f"replicate: {replicate}; a divisor of the {count}"):
            start("cpu", replicate)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_damaged_shards_are_named(setting, tmp_path, damage):
    train(setting, tmp_path / "run", 2, 2)
    shards = tmp_path / "run" / "checkpoints" / "step-000002" / "shards"
    victim = next(shards.glob("__1*.distcp"))
    if damage == "cut":
        victim.write_bytes(victim.read_bytes()[:100])
    else:
        (shards / ".metadata").unlink()
    command = command_of(setting, tmp_path / "run", 1, 4)
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode != 0
    assert "remove step-000002 to continue from the one before" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_shards_that_do_not_fit_leave_the_checkpoint_before_them(setting, tmp_path):
    output = tmp_path / "run"
    train(setting, output, 2, 2)
    command = command_of(setting, output, 2, 6)
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "-", *command]  # 40 KB a file
    result = subprocess.run(limited, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert result.returncode != 0
    assert "step-000004" in result.stderr
    assert "could not be written" in result.stderr
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000002"]
    train(setting, output, 1, 4)
    assert len(losses(output)) == 4


KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from trimode.training.trainer import Trainer
from trimode.cli.main import main
step, mark = Trainer.train_step, Path(sys.argv[1])
def train_step(self):
    if self.step == 5 and os.environ["RANK"] == "1" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
Trainer.train_step = train_step
sys.argv = ["trimode", *sys.argv[2:]]
main()
"""


@pytest.mark.slow
def test_torchrun_starts_processes_again_and_they_go_on(setting, tmp_path):
    """The second process is killed in step 6; the last checkpoint is that of step 4."""
    script = tmp_path / "killed_once.py"
    script.write_text(KILLED_ONCE)
    command = command_of(setting, tmp_path / "cut", 2, 8)
    place = command.index(TRIMODE)
    command[place : place + 1] = [str(script), str(tmp_path / "was-killed")]
    command[place - 3 : place - 3] = ["--max-restarts", "1"]
    environment = ENVIRONMENT | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see train.sbatch
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "was-killed").exists()
    train(setting, tmp_path / "whole", 1, 8)
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def children(pid):
    """Processes that a process started."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def signal_all(agent, number, times):
    """Send a signal to torchrun and to its workers, as srun does: torchrun then sends it again."""
    for _ in range(times):
        for pid in (agent.pid, *children(agent.pid)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("number", "times"),
    [
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 5, marks=pytest.mark.slow),
    ],
)
def test_signals_that_come_twice_at_once_lose_nothing(setting, tmp_path, number, times):
    """Ended by repeated signals, at moments that vary, and continued each time."""
    output, steps = tmp_path / "cut", 60
    metrics = output / "metrics.jsonl"
    moment = random.Random(number)
    ended_early = 0
    for _ in range(times):
        before = metrics.read_text().count("\n") if metrics.exists() else 0
        agent = subprocess.Popen(
            command_of(setting, output, 2, steps, "--set", "save_every=1000"),
            stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        while agent.poll() is None and not (
            metrics.exists() and metrics.read_text().count("\n") > before
        ):
            time.sleep(0.01)
        assert agent.poll() is None, agent.stderr.read()
        time.sleep(moment.random() / 5)
        signal_all(agent, number, times=3)
        errors = agent.communicate(timeout=120)[1]
        saved = sorted(path.name for path in (output / "checkpoints").iterdir())
        assert saved[-1] == f"step-{len(losses(output)):06d}", errors[-3000:]
        ended_early += not (output / "final").exists()
    assert ended_early
    train(setting, output, 2, steps, "--set", "save_every=1000")
    train(setting, tmp_path / "whole", 1, steps, "--set", "save_every=1000")
    assert losses(output) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_a_second_process_does_not_trip_over_what_the_first_one_writes(tmp_path):
    """The first may have made the directory, and not yet written what tells it is a run's."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.json.partial").write_text("{")
    data = DataConfig(files=("data.jsonl",))
    config = TrainConfig(output=str(tmp_path / "run"), data=data)
    facts = {"model_fingerprint": "m", "data_sha256": "d", "mask_token_id": 1}
    assert RunDirectory(config, **facts, writes=False).path == tmp_path / "run"
    with pytest.raises(InputError, match="not empty"):
        RunDirectory(config, **facts)
