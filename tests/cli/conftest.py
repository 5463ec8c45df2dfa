"""Tiny checkpoints on disk, and the command line run inside this process."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trimode.checkpoints import save_checkpoint
from trimode.cli import main as cli_main
from trimode.engine import costs
from trimode.testing.tiny import (
    CHAT_TEMPLATE,
    byte_tokenizer,
    tiny_config,
    tiny_tensors,
    write_tiny_checkpoint,
)
from trimode.text import ChatTemplate

TRIMODE = str(Path(sys.executable).with_name("trimode"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of the command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        lines = self.out.splitlines()
        assert len(lines) == 1, (self.out, self.err)
        return json.loads(lines[0])

    def rows(self) -> list[dict[str, Any]]:
        """Every object on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Outcome]


def write_printable_checkpoint(
    directory: Path, family: str = "nemotron_labs_diffusion", **overrides: Any
) -> Path:
    """A tiny model whose greedy answers are letters only and never end by themselves."""
    overrides = {"tie_word_embeddings": False} | overrides
    config = tiny_config(family, **overrides)
    tensors = tiny_tensors(config)
    head = tensors["lm_head.weight"]
    tokenizer = byte_tokenizer()
    letters = [tokenizer.encode(letter)[0] for letter in "abcdefghijklmnopqrstuvwxyz"]
    kept = head[letters].clone()
    head.zero_()
    head[letters] = kept
    save_checkpoint(
        directory,
        config,
        tensors.items(),
        tokenizer=tokenizer,
        chat_template=ChatTemplate(CHAT_TEMPLATE),
    )
    return directory


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def nld(checkpoints):
    """Trained to denoise, as far as its config says."""
    return str(write_tiny_checkpoint(checkpoints / "nld"))


@pytest.fixture(scope="session")
def llama(checkpoints):
    """An ordinary AR checkpoint."""
    return str(write_tiny_checkpoint(checkpoints / "llama", "llama"))


@pytest.fixture(scope="session")
def letters(checkpoints):
    """Answers in small letters, greedily and without an end."""
    return str(write_printable_checkpoint(checkpoints / "letters"))


@pytest.fixture(scope="session")
def endless(checkpoints):
    """As `letters`, and slow enough to be interrupted: about a minute of tokens."""
    path = checkpoints / "endless"
    return str(write_printable_checkpoint(path, num_layers=6, max_position_embeddings=16_384))


@pytest.fixture(autouse=True)
def _no_options_from_the_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("TRIMODE_") and name not in ("TRIMODE_CACHE", "TRIMODE_TEST_CACHE"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(autouse=True)
def _any_machine_is_idle_enough(monkeypatch):
    """Costs count as steady, or a busy machine would say on stderr that they are not kept."""
    monkeypatch.setattr(costs, "MOST_SPREAD", float("inf"))
    monkeypatch.setattr(costs, "MOST_WAITED", 1.0)
    monkeypatch.setattr(costs, "LEAST_POINTS", 1)


class _NoTerminal(io.TextIOWrapper):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")


@pytest.fixture
def cli(monkeypatch, capsys) -> Cli:
    """Run the command in this process: `cli("generate", model, "hi", stdin=b"")`."""

    def run(*arguments: Any, stdin: bytes | str = b"") -> Outcome:
        content = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "argv", ["trimode", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", _NoTerminal(content))
        capsys.readouterr()
        code = cli_main._run()
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


def child_environment(**extra: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""} | extra


@pytest.fixture
def start():
    """Start the command as a process of its own; whatever is left of it is killed at the end."""
    running = []

    def begin(*arguments: Any, **options: Any) -> subprocess.Popen:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [TRIMODE, *map(str, arguments)],
            env=child_environment(),
            start_new_session=True,
            **pipes | options,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def wait_until_blocked(process: subprocess.Popen) -> None:
    """Return once the process sleeps and has used no processor time for a while (Linux)."""
    before = None
    while True:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        now = (stat[0], stat[11], stat[12])  # state, user and system time
        if now[0] == "S" and now == before:
            return
        before = now
        time.sleep(0.3)


def assert_one_line_error(outcome: Outcome, code: int, *words: str) -> None:
    """The contract of section 6: the exit code, and one line that says what and where."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.endswith("\n")
    assert "internal error" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err
