"""The log: JSON lines, no text of prompts unless asked, and nobody waits for its reader."""

import contextlib
import io
import json
import logging
import os
import re

import httpx2 as httpx
import pytest

from tests.server.asking import client_of, until
from tests.server.conftest import serving
from trimode.server import log_to

SECRET = "the name of the horse"


@pytest.fixture
def log():
    """Call with `requests=...`: what the server logs from then on."""
    names = ("trimode", "uvicorn", "opentelemetry", "trimode.server")
    loggers = [logging.getLogger(name) for name in names]
    before = [(one, one.handlers, one.propagate, one.level) for one in loggers]
    stream = io.StringIO()

    def start(**options):
        handler = log_to(stream, **options)

        def lines():
            handler.flush()
            return [json.loads(line) for line in stream.getvalue().splitlines()]

        return lines

    yield start
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def use(url):
    """A request that ends well, one that is refused for its text, and one with extra fields."""
    client = client_of(url)
    client.completions.create(
        model="tiny:linear", prompt=SECRET, max_tokens=5, extra_body={"ignore_eos": True}
    )
    wrong = {"model": "tiny", "messages": [{"role": SECRET, "content": SECRET}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=wrong).status_code == 400
    worse = {"model": SECRET, "prompt": 5, "x": SECRET}
    assert httpx.post(f"{url}/v1/completions", json=worse).status_code == 400


def test_a_request_is_one_line_of_facts_without_its_text(model, log):
    lines = log()
    with serving(model) as (url, _):
        use(url)
    found = lines()
    assert SECRET not in json.dumps(found)
    (request,) = [line for line in found if line["event"] == "request"]
    assert request["prompt_tokens"] == len(SECRET)
    assert (request["completion_tokens"], request["finish_reason"]) == (5, "length")
    assert (request["mode"], request["level"]) == ("linear", "info")
    assert 0 <= request["first_token_seconds"] <= request["seconds"]
    refused = [line for line in found if line["event"] == "refused"]
    assert [(line["status"], line["param"]) for line in refused] == [
        (400, "messages[0].role"),
        (400, "prompt"),
    ]


def test_prompts_are_logged_where_asked(model, log):
    lines = log()
    with serving(model, log_prompts=True) as (url, _):
        use(url)
    (request,) = [line for line in lines() if line["event"] == "request"]
    assert request["prompt"] == SECRET
    assert isinstance(request["text"], str)


def test_warnings_alone_are_quiet_until_something_breaks(model, log, monkeypatch):
    lines = log(requests=False)

    def broken(*_):
        raise RuntimeError("out of memory")

    with serving(model) as (url, _):
        use(url)
        assert lines() == []
        monkeypatch.setattr("trimode.engine.engine.run", broken)
        asked = {"model": "tiny", "prompt": "a"}
        assert httpx.post(f"{url}/v1/completions", json=asked).status_code == 500
    (failure,) = lines()
    assert failure["level"] == "error"
    assert re.fullmatch("request cmpl-[0-9a-f]+ failed", failure["event"])
    assert "RuntimeError: out of memory" in failure["exception"]


def test_a_client_that_leaves_is_logged(model, log):
    lines = log()
    with serving(model) as (url, service):
        client = client_of(url)
        body = {"ignore_eos": True}
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=900, stream=True, extra_body=body
        )
        next(iter(stream))
        stream.close()
        until(lambda: not service.worker.busy)
    assert [line["finish_reason"] for line in lines()] == ["abort"]


def test_a_pipe_that_nobody_reads_stops_no_one(log):
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    handler = log_to(stream)
    logger = logging.getLogger("trimode.server")
    for _ in range(3000):
        logger.info("x" * 100)  # the pipe holds 64 KB; a writer that waited would wait for ever
    os.close(reader)  # the writer's thread gets an error and goes on
    handler.flush()
    with contextlib.suppress(BrokenPipeError):
        stream.close()
