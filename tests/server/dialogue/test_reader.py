"""Answers taken apart: the same however the text is cut, in every format of calls."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimode.server.dialogue.call_formats import HERMES, Llama3, MistralArgs, MistralList
from trimode.server.dialogue.reader import AnswerReader, Arguments, CallBegun, Content, Thought

CALLS = {
    "hermes": (
        HERMES,
        (
            '<tool_call>\n{"name": "w", "arguments": {"t": "a </tool_call> \\" } b"}}\n'
            "</tool_call>\n"
            '<tool_call>\n{"name": "v", "arguments": {"n": [1, {"x": "]"}]}}\n</tool_call>'
        ),
    ),
    "mistral_list": (
        MistralList(),
        (
            '[TOOL_CALLS][{"name": "w", "arguments": {"t": "a </tool_call> \\" } b"}}, '
            '{"name": "v", "arguments": {"n": [1, {"x": "]"}]}}]'
        ),
    ),
    "mistral_args": (
        MistralArgs(),
        (
            '[TOOL_CALLS]w[ARGS]{"t": "a </tool_call> \\" } b"}'
            '[TOOL_CALLS]v[ARGS]{"n": [1, {"x": "]"}]}'
        ),
    ),
}
FIRST, SECOND = '{"t": "a </tool_call> \\" } b"}', '{"n": [1, {"x": "]"}]}'


def cut(text, places):
    edges = [0, *sorted({p % (len(text) + 1) for p in places}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def read(reader, pieces):
    """The reader, and all that its parts said."""
    said = {"thought": "", "content": "", "calls": []}
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    for part in parts:
        if isinstance(part, Thought):
            said["thought"] += part.text
        elif isinstance(part, Content):
            said["content"] += part.text
        elif isinstance(part, CallBegun):
            assert part.index == len(said["calls"])
            said["calls"].append([part.name, ""])
        else:
            assert isinstance(part, Arguments)
            said["calls"][part.index][1] += part.text
    assert said["thought"] == reader.thought
    assert said["content"] == reader.content
    assert said["calls"] == [[call.name, call.arguments] for call in reader.calls]
    return said


@pytest.mark.parametrize("name", CALLS)
@given(places=st.lists(st.integers(0, 400), max_size=12), before=st.sampled_from(["", "Sure.\n"]))
def test_calls_are_read_however_the_text_is_cut(name, places, before):
    form, text = CALLS[name]
    for pieces in (cut(before + text, places), [*(before + text)]):
        said = read(AnswerReader(form, ("w", "v")), pieces)
        assert said == {"thought": "", "content": before, "calls": [["w", FIRST], ["v", SECOND]]}


@pytest.mark.parametrize("name", CALLS)
def test_an_answer_cut_off_anywhere_shows_no_markup_and_loses_no_call(name):
    form, text = CALLS[name]
    for length in range(len(text)):
        said = read(AnswerReader(form, ("w", "v")), [text[:length]])
        assert said["content"] in text[: len(form.opening) - 1], "at most a begun tag"
        for call, whole in zip(said["calls"], (FIRST, SECOND), strict=False):
            assert whole.startswith(call[1])
        if SECOND[:5] in text[:length]:
            assert said["calls"][0] == ["w", FIRST]


@given(places=st.lists(st.integers(0, 200), max_size=9))
def test_llama_answers_are_a_call_as_a_whole_or_text(places):
    call = '{"name": "w", "parameters": {"t": "}"}}'
    for prefix in ("", "<|python_tag|>"):
        said = read(AnswerReader(Llama3(), ("w",)), cut(prefix + call, places))
        assert said["calls"] == [["w", '{"t": "}"}']]
        assert said["content"] == ""
    for text in (f"Sure: {call}", '{"name": "z", "parameters": {}}', '{"a": 1}', "{", "<svg>"):
        said = read(AnswerReader(Llama3(), ("w",)), cut(text, places))
        assert said == {"thought": "", "content": text, "calls": []}


@given(places=st.lists(st.integers(0, 200), max_size=9))
def test_thoughts_are_kept_apart(places):
    thought = "a <tool_call> b\n< c"
    call = CALLS["hermes"][1]
    for state, text in (
        ("may", f"<think>\n{thought}\n</think>\n\n{call}"),
        ("open", f"\n{thought}\n</think>\n\n{call}"),
    ):
        said = read(AnswerReader(HERMES, ("w", "v"), thought=state), cut(text, places))
        assert said["thought"] == thought
        assert said["content"] == ""
        assert [json.loads(call[1]) for call in said["calls"]] == [
            json.loads(FIRST),
            json.loads(SECOND),
        ]
    for text in ("<thin ice>", "x <think> y </think>"):
        said = read(AnswerReader(thought="may"), cut(text, places))
        assert said == {"thought": "", "content": text, "calls": []}
    said = read(AnswerReader(thought="may"), cut("<think>\n\n</think>\n\nHi", places))
    assert said == {"thought": "", "content": "Hi", "calls": []}


def test_a_thought_that_is_cut_off_stays_a_thought():
    assert read(AnswerReader(thought="open"), ["so far </th"])["thought"] == "so far </th"


def test_a_name_that_nobody_offered_is_no_call():
    text = CALLS["hermes"][1]
    said = read(AnswerReader(HERMES, ("other",)), ["Well. ", text])
    assert said["calls"] == []
    assert said["content"].startswith("Well. {")
    assert "<tool_call>" not in said["content"]
