"""`trimode train` and `trimode convert` as a user runs them, on tiny models."""

import json
import signal
import subprocess
import time

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.conftest import either_signal
from trimode.testing.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("train") / "base", "llama")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"p{i}", "completion": f"answer {i}"} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(cli, base, data, output, *more):
    return cli(
        "train", "joint", "-m", base, "--data", data, "-o", output, "--steps", 3,
        "--set", "data.sequence_length=64", "--set", "batch_size=2", *more,
    )  # fmt: skip


def test_train_prints_where_the_result_is_and_it_loads(cli, base, data, tmp_path):
    outcome = train(cli, base, data, tmp_path / "run")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}/run/final\n")
    answer = cli("generate", tmp_path / "run" / "final", "p1", "--max-tokens", 4, "--json",
                 "--mode", "diffusion")  # fmt: skip
    assert answer.json()["mode"] == "diffusion"


def test_the_run_directory_tells_what_was_run(cli, base, data, tmp_path):
    train(cli, base, data, tmp_path / "run", "--set", "optimiser.learning_rate=2e-4")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["optimiser"]["learning_rate"] == 2e-4
    assert len(record["data_sha256"]) == 64
    assert record["trimode"]
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3]


def test_the_same_command_again_adds_nothing(cli, base, data, tmp_path):
    train(cli, base, data, tmp_path / "run")
    before = (tmp_path / "run" / "final" / "model.safetensors").read_bytes()
    assert train(cli, base, data, tmp_path / "run").code == 0
    assert (tmp_path / "run" / "final" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--set", "optimiser.learning_rate=-1"), "learning_rate"),
        (("--set", "nothing=1"), "nothing: no such field"),
        (("--set", "steps"), "--set: 'steps'"),
        (("--set", "train=half"), "train: 'half'"),
        (("--set", "data.sequence_length=100000"), "sequence_length"),
    ],
)
def test_bad_fields_are_refused_with_code_2(cli, base, data, tmp_path, more, words):
    assert_one_line_error(train(cli, base, data, tmp_path / "run", *more), 2, words)
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_lists_the_known_ones(cli):
    assert_one_line_error(cli("train", "nope"), 2, "config", "denoise, joint")


def test_a_recipe_file_of_ones_own(cli, base, data, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {base}\noutput: {tmp_path}/run\nsteps: 1\ndata: {{files: [{data}]}}\n")
    assert cli("train", path).code == 0
    path.write_text("a: [")
    assert_one_line_error(cli("train", path), 2, "not YAML")


def test_convert_makes_an_adapter_that_drafts_and_leaves_ar_alone(cli, base, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "say {i}"}}\n' for i in range(6)))
    outcome = cli(
        "convert", base, "-o", tmp_path / "run", "--conversations", 6, "--steps", 2,
        "--prompts", prompts, "--sampled-share", 0,
        "--answer-tokens", 8, "--set", "adapter.rank=2", "--set", "data.sequence_length=128",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    adapter = tmp_path / "run" / "final"
    assert sorted(p.name for p in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "draft_priors.json",
    ]
    assert "no draft head: " in outcome.err, "too few answers"
    plain = cli("generate", base, "hi", "--max-tokens", 6, "--json").json()
    for mode in ("ar", "linear"):
        adapted = cli("generate", base, "hi", "--max-tokens", 6, "--json", "--adapter", adapter,
                      "--mode", mode).json()  # fmt: skip
        assert adapted["token_ids"] == plain["token_ids"]


@pytest.mark.parametrize(
    "command", [("convert",), ("train-head", "--data", "x.jsonl")], ids=["convert", "train-head"]
)
def test_several_processes_are_refused_where_they_would_write_the_same_files(
    cli, base, tmp_path, monkeypatch, command
):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    outcome = cli(*command, base, "-o", tmp_path / "run")
    assert_one_line_error(outcome, 2, "torchrun: 2 processes; start it alone", "--shard I/N")
    assert not list(tmp_path.iterdir())


def test_shards_of_conversations_are_joined_and_trained_on(cli, base, tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"say {i}\n" for i in range(6)))
    asked = (
        "convert", base, "-o", tmp_path / "run", "--conversations", 6, "--steps", 1, "--no-head",
        "--prompts", tmp_path / "prompts.txt", "--sampled-share", 0, "--answer-tokens", 8,
        "--set", "adapter.rank=2", "--set", "data.sequence_length=128",
    )  # fmt: skip
    parts = [tmp_path / f"run.{i}-of-2.jsonl" for i in range(2)]
    for i, part in enumerate(parts):
        outcome = cli(*asked, "--shard", f"{i}/2")
        assert (outcome.code, outcome.out) == (0, f"{part}\n")
        ids = sorted(json.loads(line)["id"] for line in part.open())
        assert ids == [i, i + 2, i + 4]
        assert not (tmp_path / "run").exists()
    command = outcome.err.splitlines()[-1]
    subprocess.run(command, shell=True, check=True)
    joined = (tmp_path / "run.jsonl").read_bytes()
    assert joined == b"".join(part.read_bytes() for part in parts)
    outcome = cli(*asked)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run.jsonl").read_bytes() == joined  # nothing was written again
    assert_one_line_error(cli(*asked, "--shard", "2/2"), 2, "shard: '2/2'")


def stop_repeatedly(process, number):
    """Send a signal again and again for a second, as launchers of clusters do."""
    end = time.monotonic() + 1
    while process.poll() is None and time.monotonic() < end:
        process.send_signal(number)
        time.sleep(0.001)


@either_signal
def test_convert_keeps_its_conversations_however_often_it_is_signalled(
    start, endless, tmp_path, number, code
):
    arguments = (
        "convert", endless, "-o", tmp_path / "run", "--conversations", 400, "--steps", 1,
        "--answer-tokens", 60, "--concurrency", 2, "--sampled-share", 0,
        "--prompts", tmp_path / "prompts.txt",
    )  # fmt: skip
    (tmp_path / "prompts.txt").write_text("".join(f"say {n}\n" for n in range(400)))
    written = tmp_path / "run.jsonl"
    for least in (2, 5):  # the second run goes on
        process = start(*arguments)
        while not (written.exists() and written.read_bytes().count(b"\n") >= least):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.001)
        stop_repeatedly(process, number)
        _, errors = process.communicate(timeout=60)
        done = [json.loads(line)["id"] for line in written.open()]
        assert process.returncode == code, errors
        said = f"stopped: {len(done)} of 400 conversations are in {written}; "
        assert errors.decode().splitlines()[-1] == f"{said}the same command continues"
        assert len(set(done)) == len(done) < 400


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_first_and_the_same_command_continues(start, base, data, tmp_path, number):
    arguments = (
        "train", "joint", "-m", base, "--data", data, "-o", tmp_path / "run", "--steps", 100_000,
        "--set", "data.sequence_length=64", "--set", "save_every=100000",
    )  # fmt: skip
    process = start(*arguments)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None, process.stderr.read()
    stop_repeatedly(process, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command continues it" in errors
    assert b"Traceback" not in errors
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    done = int(checkpoint.name.removeprefix("step-"))
    again = start(*arguments)
    while metrics.read_text().count("\n") <= done:
        assert again.poll() is None, again.stderr.read()
    again.send_signal(number)
    again.communicate(timeout=60)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
