"""Told to stop, a server finishes what runs and refuses what is new."""

import concurrent.futures
import time

import httpx2 as httpx
import openai
import pytest

from tests.server.asking import (
    LONG,
    client_of,
    until,
)
from tests.server.conftest import serving
from trimode import generate

BODY = {"model": "tiny", "prompt": "a", "temperature": 0}


def test_what_runs_is_finished_and_what_is_new_gets_503(model):
    expected = generate(model, "a", raw=True, max_tokens=900, ignore_eos=True).text
    with serving(model, shutdown_timeout=60, defaults=LONG) as (url, service):
        client = client_of(url)
        stream = iter(client.completions.create(stream=True, **BODY))
        text = next(stream).choices[0].text
        with concurrent.futures.ThreadPoolExecutor() as pool:
            whole = pool.submit(client.completions.create, **BODY)
            until(lambda: len(service.worker.engine.live) == 2)
            service.http_server.should_exit = True
            until(lambda: service.stopping)
            assert service.worker.busy
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(**BODY)
            assert caught.value.status_code == 503
            assert (caught.value.code, set(caught.value.body)) == (
                "stopping",
                {"message", "type", "param", "code"},
            )
            assert caught.value.response.headers["retry-after"] == "5"
            assert httpx.get(f"{url}/ready").status_code == 503
            assert httpx.get(f"{url}/health").status_code == 200
            text += "".join(chunk.choices[0].text for chunk in stream)
            assert whole.result().choices[0].text == text == expected
    assert not service.worker.engine.busy


@pytest.mark.parametrize("stream", [True, False])
def test_who_runs_longer_than_the_grace_is_told(model, stream):
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        serving(model, shutdown_timeout=0.01, defaults=LONG) as (url, service),
    ):
        client = client_of(url)

        def ask():
            return list(client.completions.create(stream=stream, **BODY))

        answer = pool.submit(ask)
        until(lambda: service.worker.engine.live)
        service.http_server.should_exit = True
        began = time.monotonic()
        with pytest.raises(openai.APIError, match="the server is stopping"):
            answer.result()
        assert time.monotonic() - began < 20
    assert not service.worker.engine.busy
