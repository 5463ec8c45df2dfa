"""What only a process of its own shows: signals, pipes, terminals, start-up."""

import os
import pty
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import TRIMODE, child_environment
from tests.conftest import either_signal

COMMANDS = ["", "generate", "chat", "compare", "models", "env"]


def read_some(process, count=20):
    return process.stdout.read(count)


@either_signal
def test_an_interrupted_generation_keeps_its_text_and_says_so(start, endless, number, code):
    process = start("generate", endless, "hi", "--max-tokens", 15_000)
    begun = read_some(process)
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == code
    text = begun + rest
    assert len(text) > 20
    assert text.endswith(b"\n")
    assert b"Traceback" not in errors


def test_a_reader_that_goes_away_causes_no_traceback(start, endless):
    process = start("generate", endless, "hi", "--max-tokens", 300)
    read_some(process, 5)
    process.stdout.close()
    process.wait(timeout=60)
    assert b"Traceback" not in process.stderr.read()
    process.stdout = None


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_fast(command):
    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        arguments = [TRIMODE, *filter(None, [command]), "--help"]
        subprocess.run(arguments, check=True, capture_output=True, env=child_environment())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # about 0.15 on an idle machine; the bound leaves room for a busy one
    assert min(seconds() for _ in range(3)) < 1.0


HEAVY = "import sys; {}; sys.exit(bool({{'torch', 'transformers', 'numpy'}} & set(sys.modules)))"


def test_the_command_line_imports_no_torch_until_it_must():
    code = HEAVY.format("import trimode.cli.main")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_that_check_can_fail():
    code = HEAVY.format("import trimode.cli.main, numpy")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1


def run_in_terminal(arguments, interrupt_after=None):
    """Output of a command whose stdout and stderr are a terminal."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [TRIMODE, *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=child_environment(TERM="xterm", COLUMNS="200", LINES="50"),
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""
    begun = time.monotonic()
    while True:
        try:
            piece = os.read(controller, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
        if interrupt_after and time.monotonic() - begun > interrupt_after:
            process.send_signal(signal.SIGINT)
            interrupt_after = None
    os.close(controller)
    return process.wait(), seen.decode(errors="replace")


@pytest.mark.parametrize("mode", ["linear", "quadratic", "diffusion"])
def test_drafts_on_a_terminal_end_in_the_plain_text(cli, letters, mode):
    options = ["generate", letters, "hi", "--mode", mode, "--max-tokens", 24, "--block-length", 8]
    plain = cli(*options).out.strip()
    code, screen = run_in_terminal([*options, "--show-drafts", "--quiet"])
    assert code == 0
    assert len(plain) == 24
    assert plain in screen


def test_drafts_without_a_terminal_fall_back_to_text(cli, letters):
    outcome = cli("generate", letters, "hi", "--mode", "linear", "--max-tokens", 9, "--show-drafts")
    assert outcome.out == cli("generate", letters, "hi", "--max-tokens", 9).out
    assert "stdout is no terminal" in outcome.err
