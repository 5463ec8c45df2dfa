"""Anthropic's protocol, as its API reference has it; the official client is in tests/clients."""

import json

import httpx2 as httpx
import pytest

from tests.server.conftest import serving
from tests.server.dialogue.test_answers import NESTED, OPENING, TEXT, call
from trimode.testing import saying_model

PATH = "/v1/messages"
TOOL = {"name": "w", "description": "d", "input_schema": TEXT}
HI = [{"role": "user", "content": "hi"}]
CALL = "Well.\n" + call("w", '{"t": "x"}')


def post(url, path=PATH, **fields):
    body = {"model": "tiny", "max_tokens": 200, "messages": HI, "temperature": 0, **fields}
    return httpx.post(url + path, json=body, timeout=60)


def events(url, **fields):
    """The events of a stream, and the message that they make."""
    raw = post(url, stream=True, **fields).text.removesuffix("\n\n").split("\n\n")
    found = []
    for event in raw:
        name, data = event.split("\n")
        data = json.loads(data.removeprefix("data: "))
        assert name == f"event: {data['type']}"
        found.append(data)
    message = found[0]["message"]
    for event in found[1:]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            kind, text = next((k, v) for k, v in delta.items() if k != "type")
            block[kind] = block.get(kind, "") + text
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    for block in message["content"]:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("partial_json", "{}"))
            block["id"] = "an id"
    return [e["type"] for e in found], message


def whole(url, **fields):
    answer = post(url, **fields).json()
    for block in answer["content"]:
        if block["type"] == "tool_use":
            assert block["id"]
            block["id"] = "an id"
    return answer


@pytest.mark.parametrize(
    ("text", "template", "fields", "content", "reason"),
    [
        ("Hello", None, {}, [{"type": "text", "text": "Hello"}], "end_turn"),
        ("Hello", None, {"max_tokens": 3}, [{"type": "text", "text": "Hel"}], "max_tokens"),
        ("Hello", None, {"stop_sequences": ["l"]}, [{"type": "text", "text": "He"}],
         "stop_sequence"),
        (CALL, None, {"tools": [TOOL]},
         [{"type": "text", "text": "Well.\n"},
          {"type": "tool_use", "id": "an id", "name": "w", "input": {"t": "x"}}], "tool_use"),
        ("no", None, {"tools": [TOOL], "tool_choice": {"type": "none"}},
         [{"type": "text", "text": "no"}], "end_turn"),
        ("Hm</think>Yes", OPENING, {"thinking": {"type": "enabled", "budget_tokens": 50}},
         [{"type": "thinking", "thinking": "Hm", "signature": ""},
          {"type": "text", "text": "Yes"}], "end_turn"),
        ('{"t": "y"}', None, {"output_format": {"type": "json_schema", "schema": TEXT}},
         [{"type": "text", "text": '{"t": "y"}'}], "end_turn"),
    ],
)  # fmt: skip
def test_an_answer_whole_and_in_events(text, template, fields, content, reason):
    more = {} if template is None else {"template": template}
    with serving(saying_model(text, **more)) as (url, _):
        answer, (kinds, streamed) = whole(url, **fields), events(url, **fields)
    assert answer["content"] == streamed["content"] == content
    assert answer["stop_reason"] == streamed["stop_reason"] == reason
    assert (answer["stop_sequence"] is not None) == (reason == "stop_sequence")
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "tiny")
    assert answer["id"].startswith("msg_")
    counts = answer["usage"]
    assert counts["output_tokens"] == streamed["usage"]["output_tokens"]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(content)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "w"}])
def test_a_forced_tool_is_used(choice):
    tool = {"name": "w", "input_schema": NESTED}
    with serving(saying_model("no")) as (url, _):
        answer = whole(url, tools=[tool], tool_choice={**choice, "disable_parallel_tool_use": True})
    (block,) = answer["content"]
    assert (block["type"], block["name"], answer["stop_reason"]) == ("tool_use", "w", "tool_use")


def test_a_conversation_with_tools_reaches_the_template():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "t", "signature": "s"},
            {"type": "text", "text": "d"},
            {"type": "tool_use", "id": "1", "name": "w", "input": {"t": "é"}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}]},
            {"type": "text", "text": "e"}]},
    ]  # fmt: skip
    template = (
        "{% for m in messages %}[{{ m.role }}:{{ m.reasoning_content }}{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}]{% endfor %}"
    )
    seen = []
    with serving(saying_model("x", template=template)) as (url, service):
        encode = service.model.tokenizer.encode
        service.model.tokenizer.encode = lambda text, **more: (
            seen.append(text) or encode(text, **more)
        )
        system = [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]
        found = post(url, "/v1/messages/count_tokens", messages=messages, system=system)
    expected = '[system:s][user:ab\nc][assistant:td{"t": "é"}][tool:r][user:e]'
    assert seen[-1] == expected
    assert found.json() == {"input_tokens": len(expected.encode())}


def test_prefill_is_continued():
    with serving(saying_model("abcdef")) as (url, _):
        answer = whole(url, messages=[*HI, {"role": "assistant", "content": "abc"}])
    assert answer["content"] == [{"type": "text", "text": "def"}]


@pytest.mark.parametrize(
    ("fields", "status", "kind", "word"),
    [
        ({"model": "other"}, 404, "not_found_error", "other"),
        ({"messages": []}, 400, "invalid_request_error", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, 400,
         "invalid_request_error", "messages[0].content[0].source.type"),
        ({"tools": [{"name": "w"}]}, 400, "invalid_request_error", "tools[0].input_schema"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "z"}}, 400,
         "invalid_request_error", "tool_choice"),
        ({"thinking": {"type": "much"}}, 400, "invalid_request_error", "thinking.type"),
        ({"mcp_servers": [{}]}, 400, "invalid_request_error", "mcp_servers"),
    ],
)  # fmt: skip
def test_errors_have_anthropics_form(url, fields, status, kind, word):
    found = post(url, **fields)
    assert found.status_code == status
    body = found.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert word in body["error"]["message"]


def test_tools_that_run_elsewhere_are_left_out(url):
    found = post(url, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    assert found.status_code == 200
    assert "web_search_20250305" in found.headers["x-trimode-warning"]


def test_modes_are_chosen_by_the_name_and_by_decoding(url):
    named = post(url, model="tiny:linear").json()
    asked = post(url, decoding={"mode": "linear"}).json()
    assert named["metrics"]["decoding"]["mode"] == asked["metrics"]["decoding"]["mode"] == "linear"
    assert named["content"] == asked["content"]


def test_a_model_that_does_not_think_says_so(url):
    found = post(url, thinking={"type": "enabled", "budget_tokens": 1024})
    assert found.status_code == 200
    assert "does not think" in found.headers["x-trimode-warning"]
