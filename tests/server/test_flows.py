"""Programs that are not run here, as they ask: requests in the order in which they send them."""

import json
import urllib.error
import urllib.request

import pytest

from tests.server.asking import HI, send
from tests.server.conftest import serving
from trimode.testing import saying_model
from trimode.testing.tiny import CHAT_TEMPLATE

THINKING = CHAT_TEMPLATE + "{# </think> #}"
TOOL = {
    "type": "function",
    "function": {
        "name": "w",
        "parameters": {"type": "object", "properties": {"t": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "w", "arguments": {"t": "x"}}\n</tool_call>'


@pytest.fixture(scope="module")
def thinker():
    with serving(saying_model("<think>Hm</think>Yes", template=THINKING)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def caller():
    with serving(saying_model(CALL, "It is done.")) as (url, _):
        yield url


def events(url, body):
    """The objects of a stream of events."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        lines = answer.read().decode().splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


def joined(chunks, field):
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get(field) or "" for delta in deltas)


def test_llama_servers_page(thinker):
    """It asks for `/props`, then sends every setting of its form."""
    assert send(f"{thinker}/props")[0] == 200
    body = {
        "messages": HI, "stream": True, "return_progress": True, "reasoning_format": "auto",
        "temperature": 0, "max_tokens": -1, "dynatemp_range": 0, "dynatemp_exponent": 1,
        "top_k": 40, "top_p": 0.95, "min_p": 0.05, "xtc_probability": 0, "xtc_threshold": 0.1,
        "typ_p": 1, "repeat_last_n": 64, "repeat_penalty": 1, "presence_penalty": 0,
        "frequency_penalty": 0, "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2,
        "dry_penalty_last_n": -1, "samplers": [], "backend_sampling": False,
        "timings_per_token": True,
    }  # fmt: skip
    chunks = events(f"{thinker}/v1/chat/completions", body)
    assert (joined(chunks, "reasoning_content"), joined(chunks, "content")) == ("Hm", "Yes")


def test_thoughts_are_not_left_in_the_text(thinker, caller):
    body = {"messages": HI, "reasoning_format": "none"}
    status, answer = send(f"{thinker}/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "reasoning_format")
    assert send(f"{caller}/v1/chat/completions", body)[0] == 200, "this one has no thoughts"


def test_open_webui_by_openais_protocol(thinker):
    """It lists the models and chats with one of that list; titles come from a second request."""
    names = [card["id"] for card in send(f"{thinker}/v1/models")[1]["data"]]
    assert send(f"{thinker}/v1/models/") == send(f"{thinker}/v1/models"), "as some spell it"
    for name in names:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        ask = {"model": name, "messages": HI, **options}
        chunks = events(f"{thinker}/v1/chat/completions", ask)
        assert joined(chunks, "content") == "Yes"
        assert chunks[-1]["usage"]["completion_tokens"]
    title = {"model": names[0], "messages": HI, "stream": False, "max_completion_tokens": 50}
    assert send(f"{thinker}/v1/chat/completions", title)[1]["choices"][0]["message"]["content"]


def test_open_webui_by_ollamas_protocol(thinker):
    assert send(f"{thinker}/api/version")[1]["version"]
    name = send(f"{thinker}/api/tags")[1]["models"][0]["model"]
    assert send(f"{thinker}/api/ps")[0] == 200
    body = {"model": name, "messages": HI, "stream": False, "options": {}, "keep_alive": "5m"}
    message = send(f"{thinker}/api/chat", body)[1]["message"]
    assert (message["thinking"], message["content"]) == ("Hm", "Yes")


def test_copilots_flow(caller):
    """VS Code's Copilot looks for Ollama and reads what a model can, then speaks OpenAI's chat."""
    assert send(f"{caller}/api/version")[1]["version"]
    name = send(f"{caller}/api/tags")[1]["models"][0]["model"]
    shown = send(f"{caller}/api/show", {"model": name})[1]
    assert "tools" in shown["capabilities"]
    family = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{family}.context_length"] == 1024
    ask = {"model": name, "messages": HI, "tools": [TOOL], "stream": True, "temperature": 0.1,
           "top_p": 1, "n": 1, "max_tokens": 200}  # fmt: skip
    chunks = events(f"{caller}/v1/chat/completions", ask)
    calls = [
        c
        for x in chunks
        for choice in x["choices"]
        for c in choice["delta"].get("tool_calls") or ()
    ]
    assert calls[0]["function"]["name"] == "w"
    assert "".join(c["function"]["arguments"] for c in calls) == '{"t": "x"}'


@pytest.mark.parametrize("name", ["", "default", "dummy", "tgi", "tiny:latest"])
def test_names_of_clients_that_do_not_know_the_model(caller, name):
    assert send(f"{caller}/v1/chat/completions", {"model": name, "messages": HI})[0] == 200


def test_other_models_to_ask_change_nothing(caller):
    body = {"model": "tiny", "models": ["a/b", "c/d"], "messages": HI}
    assert send(f"{caller}/v1/chat/completions", body)[0] == 200


def test_a_tool_in_the_form_of_responses_is_named_in_chat(caller):
    flat = {"type": "function", "name": "w", "parameters": {}}
    status, answer = send(f"{caller}/v1/chat/completions", {"messages": HI, "tools": [flat]})
    assert (status, answer["error"]["param"]) == (400, "tools[0].function")
    assert "missing" in answer["error"]["message"]


def test_ollamas_command_line_asks_for_a_head_first(caller):
    with urllib.request.urlopen(urllib.request.Request(caller, method="HEAD")) as answer:
        assert answer.status == 200


@pytest.mark.parametrize("path", ["/api/show", "/api/chat", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("body", [b"x", b"", b"[]", b'"x"', b"5", b"null"])
def test_a_body_that_is_no_object_is_a_400(caller, path, body):
    request = urllib.request.Request(caller + path, body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400


def test_a_body_without_the_header_of_json_says_so(caller):
    data = json.dumps({"model": "tiny", "messages": HI}).encode()  # as curl sends it
    request = urllib.request.Request(f"{caller}/v1/chat/completions", data)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    message = json.load(caught.value)["error"]["message"]
    assert "Content-Type: application/json" in message
    assert "hi" not in message.split(), "it does not repeat the body"


def test_edits_of_the_context_are_said_not_to_happen(caller):
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    body = {"model": "tiny", "max_tokens": 9, "messages": HI, "context_management": edits}
    request = urllib.request.Request(
        f"{caller}/v1/messages", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        assert "context_management" in answer.headers["X-Trimode-Warning"]
