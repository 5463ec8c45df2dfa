"""API keys, and pages of other origins."""

import json
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import httpx2 as httpx
import openai
import pytest

from tests.server.asking import (
    HI,
    get,
)
from tests.server.conftest import serving
from tests.server.stream_reader import CHAT


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


def test_any_key_is_taken_unless_keys_are_set_and_no_page_may_call(model, url):
    """Keys; CORS."""
    for key in ("none", "sk-anything"):
        openai.OpenAI(base_url=f"{url}/v1", api_key=key).models.list()
    page = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for answer in (
        httpx.options(url + CHAT, headers=page),
        httpx.get(f"{url}/health", headers=page),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    simple = {"Origin": "https://example.org", "Content-Type": "text/plain"}
    body = json.dumps({"model": "tiny", "messages": HI}).encode()
    assert httpx.post(url + CHAT, content=body, headers=simple).status_code == 400
    with serving(model, api_keys=("a", "b"), cors_origins=("https://example.org",)) as (locked, _):
        allowed = httpx.options(locked + CHAT, headers=page)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        other = httpx.options(locked + CHAT, headers={**page, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        openai.OpenAI(base_url=f"{locked}/v1", api_key="b").models.list()
        for given in ("b", "Basic b", "Bearer", "Bearer c", "Bearer \u00e9"):
            headers = {"Authorization": given.encode("latin-1")}
            assert httpx.get(f"{locked}/v1/models", headers=headers).status_code == 401


def test_every_route_needs_a_key_but_those_of_health(model):
    with serving(model, api_keys=("one",)) as (url, _):
        key = {"Authorization": "Bearer one"}
        routes = json.loads(get(f"{url}/openapi.json", **key))["paths"]
        routes |= {"/openapi.json": {"get": {}}, "/chat/completions": {"post": {}}}
        assert "/v1/chat/completions" in routes
        open_to_all = {
            path
            for path, methods in routes.items()
            for method in methods
            if httpx.request(method, url + path).status_code not in (401, 403)
        }
        assert open_to_all == {"/health", "/ready"}
        for other in ("/docs", "/redoc", "/nowhere", "/v1/nowhere"):
            assert httpx.get(url + other).status_code == 401


def test_the_key_is_checked_before_the_body_is_read(model):
    """A stranger cannot make the server hold or read anything."""
    with serving(model, api_keys=("one",)) as (url, _):
        address = urlsplit(url)
        for expect in (b"", b"Expect: 100-continue\r\n"):
            with socket.create_connection((address.hostname, address.port), 20) as sock:
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + expect
                sock.sendall(head + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n")
                assert sock.recv(99).startswith(b"HTTP/1.1 401 ")


def test_anthropics_header_is_a_key_too(model):
    with serving(model, api_keys=("one",)) as (url, _):
        for key, status in (("one", 200), ("two", 401)):
            found = httpx.get(f"{url}/v1/models", headers={"x-api-key": key})
            assert found.status_code == status
