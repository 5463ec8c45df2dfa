"""Refusals in the words of the protocol that was spoken, on every path that leads to it."""

import pytest

from tests.server.asking import send
from tests.server.conftest import serving

ASK = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module", params=["/v1/messages", "/messages"])
def messages(request, url):
    return f"{url}{request.param}"


def refusal(url, body, status=400):
    found, answer = send(url, body)
    assert (found, answer["type"]) == (status, "error")
    return answer["error"]


@pytest.mark.parametrize(
    "thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}]
)
def test_a_conversation_that_the_server_should_remember_is_refused(messages, thread):
    """Anthropic's tool runner then sends the whole conversation; it would lose it in silence."""
    error = refusal(messages, {**ASK, "thread": thread})
    assert error["details"]["error_code"] == "thread_unsupported_request"
    assert "thread" in error["message"]


def test_a_prompt_that_is_too_long_says_what_anthropics_clients_look_for(messages):
    long = {**ASK, "messages": [{"role": "user", "content": "word " * 900}]}
    error = refusal(messages, long)
    assert error["message"].startswith("prompt is too long: ")
    assert error["details"]["error_code"] == "context_length_exceeded"


def test_a_prompt_that_is_too_long_says_what_openais_clients_look_for(url):
    long = {**ASK, "messages": [{"role": "user", "content": "word " * 900}]}
    error = send(f"{url}/v1/chat/completions", long)[1]["error"]
    assert error["code"] == "context_length_exceeded"
    assert "this model's maximum context length is 1024 tokens" in error["message"]


def test_a_body_that_is_too_large_is_refused_in_the_protocols_words(model):
    with serving(model, max_body_bytes=1000) as (url, _):
        large = {**ASK, "metadata": {"user_id": "x" * 2000}}
        error = refusal(f"{url}/v1/messages", large, 413)
        assert error["type"] == "request_too_large"
        assert list(send(f"{url}/api/chat", large)[1]) == ["error"]


def test_either_header_may_hold_the_key(model):
    with serving(model, api_keys=("right",)) as (url, _):
        for right in ("authorization", "x-api-key"):
            headers = {"authorization": "Bearer wrong", "x-api-key": "wrong"}
            headers[right] = "Bearer right" if right == "authorization" else "right"
            assert send(f"{url}/v1/models", **headers)[0] == 200
        wrong = {"authorization": "Bearer wrong", "x-api-key": ""}
        assert send(f"{url}/v1/models", **wrong)[0] == 401
