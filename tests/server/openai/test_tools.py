"""Tools: what is offered, what must be called, calls in streams."""

import json

import pytest

from tests.server.asking import (
    HI,
    LOSSLESS,
    TOOL,
    ask,
    in_mode,
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize("mode", ["ar", "linear"])
def test_a_required_tool_is_called(client, mode, choice, stream):
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    other = {"type": "function", "function": {"name": "other", "parameters": nothing}}
    body = in_mode(mode)
    asked = {"tools": [TOOL, other], "tool_choice": choice, "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(
            model="tiny", messages=HI, temperature=0, max_tokens=128, extra_body=body, **asked
        ) as events:
            for _ in events:
                pass
            answer = events.get_final_completion()
    else:
        answer = ask(client, max_tokens=128, extra_body=body, **asked)
    (chosen,) = answer.choices
    assert chosen.finish_reason == "tool_calls"
    assert not chosen.message.content
    (call,) = chosen.message.tool_calls
    assert call.id
    assert call.function.name in ("add", "other")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "add":
        assert 0 <= arguments["n"] <= 9


def test_an_answer_may_be_text_where_tools_are_offered(client):
    plain = ask(client, tools=[TOOL], tool_choice="none", max_tokens=12)
    assert plain.choices[0].message.tool_calls is None
    offered = ask(client, tools=[TOOL], max_tokens=12)
    chunks = ask(client, tools=[TOOL], max_tokens=12, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == (offered.choices[0].message.content or "")


@pytest.mark.parametrize("mode", LOSSLESS)
def test_calls_are_streamed_as_openai_does(client, mode):
    """`arguments` a string of JSON; `index` in each delta, `id` and `name` in the first."""
    fields = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 900, "seed": 3}
    chunks = [*ask(client, stream=True, extra_body=in_mode(mode), **fields)]
    calls: dict[int, dict] = {}
    for delta in (d for c in chunks for d in c.choices[0].delta.tool_calls or ()):
        if delta.index not in calls:
            assert delta.id
            assert (delta.type, delta.function.name) == ("function", "add")
            calls[delta.index] = {"id": delta.id, "arguments": ""}
        else:
            assert delta.id is None
        calls[delta.index]["arguments"] += delta.function.arguments
    assert sorted(calls) == list(range(len(calls)))
    assert len({call["id"] for call in calls.values()}) == len(calls) >= 1
    assert all(0 <= json.loads(call["arguments"])["n"] <= 9 for call in calls.values())
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(c.choices[0].delta.content for c in chunks)
