"""Valid bodies with any one value replaced, added or left out: an answer or a 4xx, no fault."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.stream_reader import ErrorBody, post

WORDS = {"type": "object", "properties": {"word": {"type": "string", "maxLength": 3}}}
TOOL = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": WORDS},
}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"word": "a"}'}}
HI = [{"role": "user", "content": "hi"}]
COMMON = {
    "model": "tiny",
    "stream": False,
    "n": 1,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.01,
    "repetition_penalty": 1.1,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "logit_bias": {"3": 1.5},
    "seed": 1,
    "stop": ["zz"],
    "ignore_eos": False,
    "decoding": {"mode": "linear", "block_length": 4, "threshold": 0.5, "show_drafts": False},
}
CHAT = {
    **COMMON,
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ],
    "max_completion_tokens": 3,
    "logprobs": True,
    "top_logprobs": 2,
}
DIFFUSION = {
    "mode": "diffusion",
    "block_length": 4,
    "threshold": 0.5,
    "revision_threshold": 0.1,
    "commit_rule": "threshold",
    "max_denoising_steps": 4,
    "seed_block": True,
    "rolling_block": False,
}
STREAM = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
TOOLS = {
    "model": "tiny",
    "messages": [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ],
    "max_tokens": 3,
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
}
SCHEMA = {
    "model": "tiny",
    "messages": HI,
    "max_tokens": 3,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "w", "strict": True, "schema": WORDS},
    },
}
PREDICTION = {
    "model": "tiny",
    "messages": HI,
    "max_tokens": 3,
    "prediction": {"type": "content", "content": [{"type": "text", "text": "ab"}]},
    "decoding": {"mode": "auto"},
}
ECHO = {**COMMON, "prompt": ["hi", "ho"], "max_tokens": 3, "logprobs": 2, "echo": True}
RESPONSE = {
    "model": "tiny",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    ],
    "instructions": "s",
    "max_output_tokens": 3,
    "text": {"format": {"type": "json_schema", "name": "w", "schema": WORDS}},
    "stream": False,
    "decoding": {"mode": "ar"},
}
BODIES = {
    "chat": ("/v1/chat/completions", CHAT),
    "drafts": (
        "/v1/chat/completions",
        {**CHAT, **STREAM, "decoding": {**DIFFUSION, "show_drafts": True}},
    ),
    "quadratic": (
        "/v1/chat/completions",
        {**CHAT, "decoding": {"mode": "quadratic", "draft_tree": False}},
    ),
    "auto": ("/v1/chat/completions", {**CHAT, **STREAM, "decoding": {"mode": "auto"}}),
    "tools": ("/v1/chat/completions", TOOLS),
    "schema": ("/v1/chat/completions", SCHEMA),
    "prediction": ("/v1/chat/completions", PREDICTION),
    "echo": ("/v1/completions", ECHO),
    "token ids": ("/v1/completions", {"model": "tiny", "prompt": [[1, 2], [3]], "max_tokens": 3}),
    "only echo": ("/v1/completions", {**ECHO, **STREAM, "max_tokens": 0}),
    "response": ("/v1/responses", RESPONSE),
    "response stream": ("/v1/responses", {**RESPONSE, "stream": True}),
}
DEEP: list = []
for _ in range(500):
    DEEP = [DEEP]
GARBAGE = [
    None, True, 0, 1, -1, 2**31, 2**70, 10**400, 1.5, 1e300, 1e-300, math.nan, math.inf, -math.inf,
    "", "x", "\0", "\ud800", "a\udc00b", "<tool_call>", [], {}, [[]], [None], [0], ["x"], DEEP,
    {"": None}, {"type": "x"}, {"\ud800": 1}, {"type": "object", "$ref": "#"}, {"const": "\ud800"},
]  # fmt: skip
SHORTEST = {
    "/v1/chat/completions": {"messages": HI, "max_tokens": 1},
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/responses": {"input": "hi", "max_output_tokens": 1},
    "/v1/messages": {"model": "tiny", "messages": HI, "max_tokens": 1},
    "/api/chat": {"model": "tiny", "messages": HI, "options": {"num_predict": 1}},
    "/api/generate": {"model": "tiny", "prompt": "hi", "options": {"num_predict": 1}},
}
NAMES = ["", " ", "-", "__", "\0", "\u200b", "0", "\u00e9"]
"""Names of fields that nobody meant."""
GONE = object()


def places(value, path=()):
    """Paths to every value in it but itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def objects(value, path=()):
    """Paths to every object in it, itself included."""
    if isinstance(value, dict):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            yield from objects(inner, (*path, key))


def changed(value, path, new):
    """A copy with the value at a path replaced, added or gone."""
    copy = value.copy()
    key, *rest = path
    if rest:
        copy[key] = changed(copy[key], rest, new)
    elif new is GONE:
        del copy[key]
    else:
        copy[key] = new
    return copy


@pytest.mark.parametrize("name", BODIES)
def test_the_bodies_themselves_are_answered(url, name):
    answer, text = post(url, *BODIES[name])
    assert answer.status == 200, text


def check(url, name, place, new):
    path, body = BODIES[name]
    answer, text = post(url, path, changed(body, place, new))
    assert answer.status in (200, 400, 404), (name, place, new, text)
    assert "server_error" not in text, (name, place, new, text)
    if answer.status != 200:
        ErrorBody.model_validate_json(text)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_value_is_a_fault_of_the_server(url, data):
    name = data.draw(st.sampled_from([*BODIES]))
    place = data.draw(st.sampled_from([*places(BODIES[name][1])]))
    check(url, name, place, data.draw(st.sampled_from([GONE, *GARBAGE])))


@pytest.mark.parametrize("path", SHORTEST)
@pytest.mark.parametrize("name", NAMES)
def test_a_field_with_an_odd_name_is_ignored(url, path, name):
    answer, text = post(url, path, {**SHORTEST[path], name: 1})
    assert answer.status == 200, text


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_no_name_of_a_field_is_a_fault_of_the_server(url, data):
    body = data.draw(st.sampled_from([*BODIES]))
    place = data.draw(st.sampled_from([*objects(BODIES[body][1])]))
    name = data.draw(st.sampled_from(NAMES) | st.text(max_size=12))
    check(url, body, (*place, name), data.draw(st.sampled_from(GARBAGE)))


@pytest.mark.slow
@pytest.mark.parametrize("name", BODIES)
def test_no_value_at_any_place_is_a_fault_of_the_server(url, name):
    for place in places(BODIES[name][1]):
        for new in [GONE, *GARBAGE]:
            check(url, name, place, new)
