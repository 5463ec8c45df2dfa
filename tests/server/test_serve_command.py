"""`trimode serve` as a process: ready line, a real client, SIGTERM."""

import contextlib
import json
import signal
import socket
import subprocess
import time

import openai
import pytest
from typer.main import get_command

from tests.cli.conftest import TRIMODE
from tests.server.asking import get
from trimode.cli.main import app
from trimode.cli.serve import RequestDefaults
from trimode.config import GenerationOptions
from trimode.server import ServerSettings
from trimode.testing import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("served"))


@contextlib.contextmanager
def start(*arguments):
    command = [TRIMODE, "serve", "--port", "0", "--no-progress", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()  # a failed test must not leave a server behind


def address_of(process):
    """Where it listens. A busy machine's costs are warned of before it says so."""
    ready = next(line for line in process.stderr if " at http" in line)
    return ready.split(" at ")[1].split(",")[0]


def test_it_serves_until_it_is_told_to_stop(checkpoint):
    with start(checkpoint, "--served-model-name", "small", "--mode", "linear") as process:
        address = address_of(process)
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        messages = [{"role": "user", "content": "Hi"}]
        answer = client.chat.completions.create(
            model="small", messages=messages, max_tokens=5, extra_body={"ignore_eos": True}
        )
        assert answer.usage.completion_tokens == 5
        assert answer.model_extra["metrics"]["decoding"]["mode"] == "linear"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, 143, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()


def test_a_second_signal_ends_it_at_once(checkpoint):
    """Although a client reads nothing and its answer could go on for long."""
    with start(checkpoint, "--shutdown-timeout", 60) as process:
        address = address_of(process)
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        stream = client.completions.create(
            model="default", prompt="a", stream=True, max_tokens=900,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert time.monotonic() - began < 10


def test_the_command_has_the_defaults_of_the_library():
    assert RequestDefaults().for_mode("auto") == ServerSettings().defaults
    assert ServerSettings().defaults.temperature == GenerationOptions().temperature == 0
    options = {parameter.name: parameter for parameter in get_command(app).commands["serve"].params}
    assert options["temperature"].default == 0


def test_other_defaults_are_given_by_options(checkpoint):
    with start(checkpoint, "--temperature", "1", "--max-tokens", "7") as process:
        address = address_of(process)
        found = json.loads(get(f"{address.removesuffix('/v1')}/props"))
    assert (found["temperature"], found["max_tokens"]) == (1.0, 7)


def test_keys_come_from_files_and_the_environment(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text("from-file\n\n  second \n")
    monkeypatch.setenv("TRIMODE_API_KEY", "from-env")
    with start(checkpoint, "--api-key-file", tmp_path / "keys") as process:
        address = address_of(process)
        for key in ("from-file", "second", "from-env"):
            openai.OpenAI(base_url=address, api_key=key).models.list()
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=address, api_key="other").models.list()


def test_it_listens_on_loopback_only_and_logs_no_prompt(checkpoint):
    with start(checkpoint) as process:
        address = address_of(process)
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)
        client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
        card = client.models.list().data[0]
        client.completions.create(model=card.id, prompt="horse", max_tokens=2)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        _playground, _curl, *lines = process.stderr.read().splitlines()
        assert [json.loads(line)["event"] for line in lines] == ["request"]
        assert "horse" not in "".join(lines)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--mode", "fast"), "mode"),
        pytest.param(("--api-key-file", "/nowhere"), "api_key_file", marks=pytest.mark.slow),
        pytest.param(("--max-sequences", "0"), "max_sequences", marks=pytest.mark.slow),
        pytest.param(("--request-timeout", "0"), "request_timeout", marks=pytest.mark.slow),
        pytest.param(("--shutdown-timeout", "-1"), "shutdown_timeout", marks=pytest.mark.slow),
        pytest.param(("--sse-ping-interval", "0"), "ping_interval", marks=pytest.mark.slow),
        pytest.param(("--log", "everything"), "log", marks=pytest.mark.slow),
        pytest.param(
            ("--otlp-traces-endpoint", "localhost:4318"),
            "otlp_traces_endpoint",
            marks=pytest.mark.slow,
        ),
        (("--api-key", "é"), "api_key"),
    ],
)
def test_bad_settings_name_the_option(checkpoint, arguments, field):
    with start(checkpoint, *arguments) as process:
        assert process.wait(60) == 2
        assert field in process.stderr.read()
