"""`trimode serve`: signs of life, a port that is taken, and the words when it is ready."""

import json
import shlex
import signal
import socket
import subprocess
import time

import pytest

from tests.cli.conftest import assert_one_line_error
from trimode.cli.serve import ready_message


def test_a_taken_port_is_refused_before_the_model_is_loaded(cli, monkeypatch):
    monkeypatch.setattr("trimode.cli.options.load_model", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        outcome = cli("serve", "nosuchmodel", "--port", port)
    assert time.monotonic() - began < 1
    assert_one_line_error(outcome, 2, f"port: {port} is taken on 127.0.0.1")


def test_a_host_that_is_not_here_is_refused(cli):
    assert_one_line_error(cli("serve", "--host", "no.such.host.invalid"), 2, "host: ")
    assert_one_line_error(cli("serve", "--host", "203.0.113.7"), 2, "port: ", "203.0.113.7")


@pytest.mark.parametrize("needs_key", [False, True])
def test_the_ready_message_has_every_address_and_no_key(needs_key):
    message = ready_message("it's", "http://127.0.0.1:9", "auto", needs_key=needs_key)
    assert message.startswith("it's at http://127.0.0.1:9/v1, mode auto\n")
    assert "playground: http://127.0.0.1:9/\n" in message
    words = shlex.split(message.splitlines()[-1])
    assert ("Authorization: Bearer $TRIMODE_API_KEY" in words) == needs_key
    assert json.loads(words[-1])["model"] == "it's"


def test_a_start_shows_signs_of_life_and_a_command_that_works(start, letters):
    process = start("serve", letters, "--port", 0, "--api-key", "s3cret", "--max-tokens", 3)
    lines = []
    while not (lines and lines[-1].startswith("curl ")):
        line = process.stderr.readline().decode()
        assert line, lines
        lines.append(line.rstrip("\n"))
    assert lines[0] == f"loading {letters}"
    assert not any("s3cret" in line for line in lines)
    environment = {"TRIMODE_API_KEY": "s3cret", "PATH": "/usr/bin:/bin"}
    command = lines[-1].replace("curl ", "curl -sS ")
    answer = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
