"""Answers on their way: clients that leave, time that is over, silence, errors in a stream."""

import json

import httpx2 as httpx
import openai
import pytest

from tests.server.asking import (
    HI,
    LONG,
    MODES,
    ask,
    client_of,
    get,
    hang_up,
    in_mode,
    until,
)
from tests.server.conftest import serving
from tests.server.stream_reader import CHAT, TEXT, raw_events


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(model, stream):
    with serving(model, defaults=LONG) as (url, server):
        hang_up(url, server, stream=stream)
        until(lambda: not server.worker.engine.busy)
        until(lambda: 'finish_reason="abort"' in get(f"{url}/metrics"), 3)


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_is_an_abort(model, mode):
    """Decoding ends, the KV cache is free, and the metric says `abort`."""
    with serving(model, defaults=LONG) as (url, service):
        client = client_of(url)
        stream = ask(client, stream=True, extra_body=in_mode(mode))
        next(iter(stream))
        stream.close()
        labels = f'finish_reason="abort",mode="{mode}"'
        for _ in range(200):
            if labels in httpx.get(f"{url}/metrics").text:
                break
        assert labels in httpx.get(f"{url}/metrics").text
        assert not service.worker.busy
        assert service.worker.engine.pool.tokens_lent == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_ended(model, stream):
    with serving(model, request_timeout=0.05, defaults=LONG) as (url, service):
        client = client_of(url)
        with pytest.raises(openai.APIError, match="not finished within") as caught:
            list(client.completions.create(model="tiny", prompt="a", stream=stream))
        assert stream or caught.value.status_code == 408
        until(lambda: not service.worker.busy)
        assert not service.worker.engine.busy
        assert 'finish_reason="abort"' in get(f"{url}/metrics")


def test_streams_are_kept_open_and_go_through_proxies(model):
    """Headers, one `id` and `created`, comments while nothing else is sent."""
    with serving(model, max_sequences=1, ping_interval=0.02, defaults=LONG) as (url, _):
        client = client_of(url)
        first = client.completions.create(model="tiny", prompt="a", stream=True)
        events = raw_events(url, CHAT, {"model": "tiny", "messages": HI, "max_tokens": 3})
        assert events[0] == ": ping"
        said = next(event for event in events if event != ": ping")
        assert json.loads(said.removeprefix("data: "))["choices"][0]["delta"]["role"]
        first.close()
        with client.chat.completions.with_streaming_response.create(
            model="tiny", messages=HI, max_tokens=3, stream=True
        ) as answer:
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-accel-buffering"] == "no"
        busy = client.completions.create(model="tiny", prompt="a", stream=True)
        chunks = [*ask(client, stream=True, max_tokens=3)]  # the client passes over comments
        assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
        busy.close()


def test_an_error_in_a_stream_is_an_error_of_the_client(model):
    """Never text in `content`; nothing comes after it."""
    with serving(model, request_timeout=0.1, defaults=LONG) as (url, _):
        client = client_of(url)
        chunks = []
        with pytest.raises(openai.APIError, match="not finished within") as caught:
            chunks.extend(ask(client, stream=True))
        assert caught.value.type == "invalid_request_error"
        assert not any("not finished" in (c.choices[0].delta.content or "") for c in chunks)
        assert raw_events(url, TEXT, {"model": "tiny", "prompt": "a"})[-1].startswith(
            'data: {"error"'
        )
