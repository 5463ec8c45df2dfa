"""The scripts for SLURM, with stand-ins for its commands that signal as SLURM does.

scancel signals every process of the step. srun, when it is itself told to end, kills the step.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimode.testing.tiny import write_tiny_checkpoint

SCRIPTS = Path(__file__).parents[2] / "examples" / "slurm"
BIN = Path(sys.executable).parent

COMMON = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path

STEP = Path(__file__).with_name("step")

def below(pid):
    children = Path(f"/proc/{{pid}}/task/{{pid}}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *below(child))]

def send(number, pid):
    for each in below(pid):
        try:
            os.kill(each, number)
        except ProcessLookupError:
            pass
"""
SRUN = (
    COMMON
    + """
signal.signal(signal.SIGTERM, lambda *_: send(signal.SIGKILL, os.getpid()))
command = sys.argv[1:]
while command[0].startswith("--"):
    command = command[1:]
STEP.write_text(str(os.getpid()))
code = subprocess.Popen(command).wait()
STEP.unlink()
sys.exit(code if code >= 0 else 128 - code)
"""
)
SCANCEL = (
    COMMON
    + """
asked, step = sys.argv[1:]
assert asked == "--signal=TERM" and step == os.environ["SLURM_JOB_ID"] + ".0", sys.argv
send(signal.SIGTERM, int(STEP.read_text()))
"""
)
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; else echo "$@" >> {log}; fi
"""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def cluster(tmp_path):
    """Run a script as a job, in a folder of its own: `job("train.sbatch", ..., TASK="3")`."""
    commands = tmp_path / "commands"
    commands.mkdir()
    log = tmp_path / "requeued"
    for name, text in (
        ("srun", SRUN.format(python=sys.executable)),
        ("scancel", SCANCEL.format(python=sys.executable)),
        ("scontrol", SCONTROL.format(log=log)),
    ):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    running = []

    def job(script, *arguments, **variables):
        environment = os.environ | {
            "PATH": f"{commands}:{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
        }
        command = ["bash", str(SCRIPTS / script), *map(str, arguments)]
        process = subprocess.Popen(
            command, env=environment | variables, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        running.append(process)
        return process

    job.requeued = lambda: log.read_text().splitlines() if log.exists() else []
    yield job
    for process in running:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("slurm") / "base", "llama")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"p{i}", "completion": f"answer {i} " * (i + 1)} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training(base, data, steps):
    """What follows the run directory."""
    return ("joint", "--model", base, "--data", data, "--steps", steps,
            "--set", "data.sequence_length=128", "--set", "batch_size=2",
            "--set", "save_every=1000", "--set", "evaluation.every=0")  # fmt: skip


def losses(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def lines_of(path):
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(process, ready):
    while not ready():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.iterdir()))
def test_a_script_is_bash_and_says_how_it_is_used(script):
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPTS / script], check=True)
    found = subprocess.run(["bash", SCRIPTS / script], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.startswith("usage: sbatch ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "stops"), [(1, 1), pytest.param(2, 4, marks=pytest.mark.slow)]
)
def test_a_training_that_is_stopped_is_queued_again_and_goes_on(
    cluster, base, data, tmp_path, processes, stops
):
    moment = random.Random(4)
    asked = training(base, data, 100)
    run, count = tmp_path / "run", {"PROCESSES": str(processes)}
    for stop in range(1, stops + 1):
        before = len(losses(run))
        job = cluster("train.sbatch", run, *asked, SLURM_RESTART_COUNT=str(stop), **count)
        wait_for(job, lambda: len(losses(run)) > before)  # noqa: B023
        time.sleep(moment.random() / 10)
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=60)[0]
        assert job.returncode != 0
        assert "the job is queued again" in said
        assert len(cluster.requeued()) == stop
        saved = sorted(path.name for path in (run / "checkpoints").iterdir())
        assert saved[-1] == f"step-{len(losses(run)):06d}", said
    job = cluster("train.sbatch", run, *asked, **count)
    assert f"done: {run}/final" in job.communicate(timeout=120)[0]
    assert job.returncode == 0
    whole = cluster("train.sbatch", tmp_path / "whole", *asked)
    whole.communicate(timeout=120)
    if processes > 1:  # sums in another order
        assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
        return
    assert losses(run) == losses(tmp_path / "whole")
    weights = "final/model.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()


@pytest.mark.slow
def test_a_training_that_fails_is_not_queued_again(cluster, base, data, tmp_path):
    asked = training(base, tmp_path / "no-such-file.jsonl", 2)
    job = cluster("train.sbatch", tmp_path / "run", *asked, MAX_RESTARTS="0")
    said = job.communicate(timeout=60)[0]
    assert job.returncode != 0
    assert "no-such-file.jsonl: not readable" in said
    assert cluster.requeued() == []


@pytest.mark.slow
def test_a_process_that_dies_is_started_again_where_it_was(cluster, base, data, tmp_path):
    run, asked = tmp_path / "run", (*training(base, data, 60), "--set", "save_every=5")
    job = cluster("train.sbatch", run, *asked)
    wait_for(job, lambda: len(losses(run)) > 12)
    worker = next(pid for pid in below(job.pid) if "LOCAL_RANK=" in environment_of(pid))
    os.kill(worker, signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 0, said
    assert "exitcode: -9" in said
    assert len(losses(run)) == 60


def below(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for child in map(int, children) for found in (child, *below(child))]


def environment_of(pid):
    return Path(f"/proc/{pid}/environ").read_text()


@pytest.mark.slow
def test_an_array_answers_every_prompt_once(cluster, tmp_path):
    model = write_tiny_checkpoint(tmp_path / "m", "llama")
    source, output, count = tmp_path / "in.jsonl", tmp_path / "out", 3
    rows = [{"id": n, "prompt": f"p{n}", "max_tokens": 60, "ignore_eos": True} for n in range(31)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [tmp_path / f"out.{i}-of-{count}.jsonl" for i in range(count)]
    for i, part in enumerate(parts):
        task = {"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_COUNT": str(count),
                "SLURM_ARRAY_JOB_ID": "77"}  # fmt: skip
        asked = ("generate.sbatch", model, source, output, "--concurrency", 1)
        job = cluster(*asked, **task)
        journal = part.with_name(f"{part.name}.partial")
        wait_for(job, lambda: lines_of(journal) > 2)  # noqa: B023
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=60)[0]
        if job.returncode:
            assert "the task is queued again" in said
            assert cluster.requeued()[-1] == f"requeue 77_{i}"
            assert cluster(*asked, **task).wait(60) == 0
        again = cluster(*asked, **task)
        assert "done already" in again.communicate(timeout=60)[0]
    assert cluster.requeued()
    joined = subprocess.run(
        f"paste -d '\\n' {output}.[0-{count - 1}]-of-{count}.jsonl | grep .",
        shell=True, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert [json.loads(line)["id"] for line in joined.splitlines()] == list(range(31))
