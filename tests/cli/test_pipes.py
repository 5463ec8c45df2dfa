"""Broken, closed and full streams: an exit code, at most one line, never a traceback."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import TRIMODE, child_environment
from tests.conftest import either_signal


def shell(command, **environment):
    """Run a pipeline; `trimode` in it is ours."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command.replace('trimode', TRIMODE)}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env=child_environment(**environment),
    )


@pytest.mark.parametrize(
    "command",
    [
        "trimode generate {m} hi --max-tokens 400 -q | head -c 5",
        "trimode generate {m} hi --max-tokens 4 -q --json | true",
        pytest.param("trimode compare {m} hi --max-tokens 4 | true", marks=pytest.mark.slow),
        "trimode --help | true",
    ],
)
def test_a_reader_that_has_gone_is_no_news(letters, command):
    result = shell(command.format(m=letters))
    assert result.stderr == ""
    assert len(result.stdout) == (5 if "head" in command else 0)


@pytest.mark.parametrize("flag", ["", "--json"])
def test_a_full_disk_behind_stdout_is_a_failure_in_one_line(letters, flag):
    result = shell(f"trimode generate {letters} hi --max-tokens 4 -q {flag} > /dev/full")
    assert result.returncode == 1
    assert result.stderr == "error: [Errno 28] No space left on device\n"


def test_prompts_are_read_from_a_pipe(cli, letters):
    result = shell(f"printf hello | trimode generate -m {letters} --max-tokens 4 -q")
    assert result.returncode == 0
    assert result.stdout == cli("generate", letters, "hello", "--max-tokens", 4, "-q").out


def test_text_beyond_ascii_is_printed_in_the_c_locale(nld):
    result = shell(f"trimode generate {nld} hi --max-tokens 5 -q", LC_ALL="C")
    assert result.returncode == 0
    assert not result.stdout.isascii()


def test_text_that_stdout_cannot_encode_is_replaced_or_refused_by_name(nld):
    result = shell(f"trimode generate {nld} hi --max-tokens 5 -q", PYTHONIOENCODING="ascii")
    assert "internal error" not in result.stderr


def test_a_closed_stdin_is_a_missing_prompt():
    result = shell("trimode generate <&-")
    assert (result.returncode, result.stderr.count("internal error")) == (2, 0)


@either_signal
def test_an_interrupted_batch_to_stdout_leaves_whole_lines(start, letters, tmp_path, number, code):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "hi", "max_tokens": 60}\n' * 300)
    process = start("generate", letters, "--input", source, "--concurrency", 2)
    begun = process.stdout.readline()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.startswith(b"stopped: ")
    assert errors.endswith(b" of 300 done; with --output it could go on\n")
    lines = (begun + rest).splitlines(keepends=True)
    assert 1 <= len(lines) < 300
    assert all(line.endswith(b"}\n") for line in lines)


def test_an_interrupted_json_answer_prints_no_half_object(start, endless):
    process = start("generate", endless, "hi", "--max-tokens", 15_000, "--json")
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in errors
