"""Connections that never become requests: too large, too slow, too many."""

import contextlib
import socket
import time
from urllib.parse import urlsplit

import httpx2 as httpx
import pytest

from tests.server.conftest import serving
from trimode.server.http import connection


@contextlib.contextmanager
def connected(url):
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), 30) as sock:
        yield sock


def answer(sock):
    """What the server says until it closes the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while data := sock.recv(65536):
            found += data
    return found


@pytest.mark.parametrize("line", [b"X: " + b"a" * 4000, b"X: a\r\n" * 600])
def test_headers_have_a_limit(url, line):
    """One long line or many short ones; a request within the limit passes."""
    with connected(url) as sock:
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n")
            for _ in range(2000):
                sock.sendall(line + (b"a" * 4000 if b"\r" not in line else b""))
        assert b" 431 " in answer(sock)[:40]
        assert time.monotonic() - began < 10
    assert httpx.get(f"{url}/health", headers={"X": "a" * 30000}).status_code == 200


def test_a_large_body_is_no_large_header(url):
    body = b'{"model": "tiny", "prompt": "a", "max_tokens": 1, "user": "' + b"x" * 300_000 + b'"}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with connected(url) as sock:
        sock.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert answer(sock).startswith(b"HTTP/1.1 200 ")


def test_clients_that_send_nothing_or_too_slowly_are_cut(model, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.5)
    with serving(model) as (url, _):
        with connected(url) as sock:
            began = time.monotonic()
            assert answer(sock) == b""
            assert time.monotonic() - began < 10
        with connected(url) as sock, contextlib.suppress(ConnectionResetError, BrokenPipeError):
            for _ in range(100):  # a header now and then does not prolong it
                sock.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"X: a\r\n")
                time.sleep(0.1)
            pytest.fail("it was never cut")
        with connected(url) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
            assert b" 200 " not in answer(sock)[:40]
        assert httpx.get(f"{url}/health").status_code == 200


def test_an_answer_may_take_longer_than_its_request(model, monkeypatch):
    monkeypatch.setattr(connection, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(connection, "BODY_SECONDS", 0.2)
    with serving(model) as (url, _):
        body = {"model": "tiny", "prompt": "a", "max_tokens": 600, "ignore_eos": True}
        found = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
    assert found.json()["usage"]["completion_tokens"] == 600
