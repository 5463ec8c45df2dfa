"""Every failure is OpenAI's error object with its status."""

import json
import urllib.error
import urllib.request

import httpx2 as httpx
import openai
import pytest

from tests.server.asking import (
    HI,
    ask,
    body,
)
from tests.server.conftest import serving
from tests.server.stream_reader import CHAT


def test_errors_have_four_keys_and_the_right_class(model, client, url):
    """400 (not 422), 401, 404, 405, 413. For 429 and 500: test_worker; for 503: test_lifetime."""
    body = {"model": "tiny", "messages": HI}
    bad = {**body, "temperature": "hot"}, {**body, "stop": 3}, {**body, "n": "1"}, {"model": "tiny"}
    with serving(model, api_keys=("k",), max_body_bytes=500) as (locked, _):
        answers = [httpx.post(url + CHAT, json=one) for one in bad]
        answers += [
            httpx.post(url + CHAT, content=b"{", headers={"Content-Type": "application/json"}),
            httpx.post(locked + CHAT, json=body),
            httpx.post(url + CHAT, json={**body, "model": "gpt-4"}),
            httpx.get(f"{url}/nowhere"),
            httpx.get(url + CHAT),
            httpx.post(
                locked + CHAT,
                json={**body, "pad": "x" * 600},
                headers={"Authorization": "Bearer k"},
            ),
        ]
    codes = [400, 400, 400, 400, 400, 401, 404, 404, 405, 413]
    assert [answer.status_code for answer in answers] == codes
    errors = [answer.json()["error"] for answer in answers]
    assert all(set(error) == {"message", "type", "param", "code"} for error in errors)
    assert [error["param"] for error in errors[:4]] == ["temperature", "stop", "n", "messages"]
    assert "'hot'" in errors[0]["message"]
    assert (errors[5]["code"], errors[6]["code"]) == ("invalid_api_key", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        ask(client, model="gpt-4")


@pytest.mark.parametrize("sent", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b"null"])
def test_garbage_is_a_bad_request(url, sent):
    request = urllib.request.Request(f"{url}/v1/chat/completions", sent)
    request.add_header("Content-Type", "application/json")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert json.load(caught.value)["error"]["type"] == "invalid_request_error"


def test_a_fault_of_the_server_is_an_error_object(model, monkeypatch):
    with serving(model) as (url, service):
        monkeypatch.setattr(service, "defaults", None)  # what no code foresees
        request = urllib.request.Request(f"{url}/v1/completions", body(prompt="a"))
        request.add_header("Content-Type", "application/json")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
    assert caught.value.code == 500
    assert json.load(caught.value)["error"]["type"] == "server_error"
