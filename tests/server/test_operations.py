"""Keys, limits, full queues, clients that leave, metrics, neighbours."""

import concurrent.futures
import http.client
import json
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import openai
import pytest

from tests.server.conftest import serving
from trimode import generate
from trimode.config import GenerationOptions

LONG = GenerationOptions(max_tokens=900, ignore_eos=True)


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.read().decode()


def body(**fields):
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return json.dumps(asked).encode()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def test_health_needs_no_key_and_the_rest_does(model):
    with serving(model, api_keys=("one", "two")) as (url, _):
        assert json.loads(get(f"{url}/health")) == {"status": "ok"}
        for path in ("/v1/models", "/metrics"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                get(url + path)
            assert caught.value.code == 401
        assert "tiny" in get(f"{url}/v1/models", Authorization="Bearer two")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="three", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_body_above_the_limit_is_refused(model):
    with serving(model, max_body_bytes=1000) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="tiny", prompt="a" * 2000)
        assert caught.value.status_code == 413
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        parts = iter([b"a" * 600] * 4)  # chunked: no length in its header
        connection.request("POST", "/v1/completions", parts, encode_chunked=True)
        assert connection.getresponse().status == 413


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b"null"])
def test_garbage_is_a_bad_request(url, sent):
    request = urllib.request.Request(f"{url}/v1/chat/completions", sent)
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["type"] == "invalid_request_error"


def test_a_full_queue_says_when_to_come_back(model):
    with serving(model, max_sequences=1, max_waiting=0, defaults=LONG) as (url, server):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        first = client.completions.create(model="tiny", prompt="a", stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt="b")
        assert caught.value.response.headers["retry-after"] == "1"
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        first.close()
        until(lambda: not server.worker.engine.busy)
        assert client.completions.create(model="tiny", prompt="b", max_tokens=2).choices


def hang_up(url, server, *, stream):
    """Ask for an answer and leave while it is decoded."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body(stream=stream), headers)
    until(lambda: server.worker.engine.live)
    connection.sock.close()
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(model, stream):
    with serving(model, defaults=LONG) as (url, server):
        hang_up(url, server, stream=stream)
        until(lambda: not server.worker.engine.busy)
        until(lambda: 'finish_reason="abort"' in get(f"{url}/metrics"), 3)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_ended(model, stream):
    with serving(model, request_timeout=0.05, defaults=LONG) as (url, service):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError, match="not finished within") as caught:
            list(client.completions.create(model="tiny", prompt="a", stream=stream))
        assert stream or caught.value.status_code == 408
        until(lambda: not service.worker.busy)
        assert not service.worker.engine.busy
        assert 'finish_reason="abort"' in get(f"{url}/metrics")


def test_a_failed_pass_ends_its_requests_and_not_the_server(model, monkeypatch):
    with serving(model) as (url, server):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with monkeypatch.context() as patch:

            def broken(*_):
                raise RuntimeError("out of memory")

            patch.setattr("trimode.engine.engine.run", broken)
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(model="tiny", prompt="a")
            assert set(caught.value.body) == {"message", "type", "param", "code"}
            with pytest.raises(openai.APIError, match="the model failed"):
                list(client.completions.create(model="tiny", prompt="a", stream=True))
        assert not server.worker.engine.busy
        assert 'finish_reason="error"' in get(f"{url}/metrics")
        assert client.completions.create(model="tiny", prompt="a").choices


def test_every_neighbour_gets_its_own_text(url, model):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    modes = ["ar", "linear", "quadratic", "diffusion"]

    def ask(i):
        fields = {"mode": modes[i % 4], "block_length": 4}
        asked = {"extra_body": {"decoding": fields}, "seed": i, "temperature": i % 3 / 2}
        found = client.completions.create(
            model="tiny", prompt=f"prompt {i}", max_tokens=20, **asked
        )
        alone = generate(
            model, f"prompt {i}", raw=True, seed=i, temperature=i % 3 / 2, max_tokens=20, **fields
        )
        return found.choices[0].text, alone.text

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for served, alone in pool.map(ask, range(36)):
            assert served == alone


def test_facts(url):
    assert json.loads(get(f"{url}/props"))["modes"][0] == "ar"
    assert "/v1/chat/completions" in json.loads(get(f"{url}/openapi.json"))["paths"]


def test_a_fault_of_the_server_is_an_error_object(model, monkeypatch):
    with serving(model) as (url, service):
        monkeypatch.setattr(service, "defaults", None)  # what no code foresees
        request = urllib.request.Request(f"{url}/v1/completions", body(prompt="a"))
        request.add_header("Content-Type", "application/json")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
    assert caught.value.code == 500
    assert json.load(caught.value)["error"]["type"] == "server_error"
