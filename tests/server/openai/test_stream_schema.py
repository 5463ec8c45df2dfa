"""Every chunk of every kind of stream, read raw and held against the published schema."""

import itertools
import re

import pytest
from pydantic import ValidationError

from tests.server.asking import SCHEMA, TOOL, in_mode
from tests.server.conftest import serving
from tests.server.stream_reader import CHAT, CHUNKS, TEXT, ChatChunk, read
from trimode.config import GenerationOptions

INPUT = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, TEXT: {"prompt": "hi"}}
LOGPROBS = {CHAT: {"logprobs": True, "top_logprobs": 2}, TEXT: {"logprobs": 2}}
FORM = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


def shape(chunks, path):
    """R role, T text or frame, C call, F finish, U usage; a letter a chunk."""
    letters = ""
    for chunk in chunks:
        if not chunk["choices"]:
            letters += "U"
            continue
        (choice,) = chunk["choices"]
        delta = choice.get("delta", {})
        if choice["finish_reason"]:
            assert not delta
            letters += "F"
        elif "role" in delta:
            letters += "R"
        else:
            letters += "C" if "tool_calls" in delta else "T"
    return letters.replace("R", "") if path == TEXT else letters


@pytest.mark.parametrize("path", CHUNKS)
@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic", "diffusion", "auto"])
@pytest.mark.parametrize("drafts", [False, True])
def test_a_stream_holds_published_chunks_in_their_order(url, path, mode, drafts):
    body = {"model": "tiny", "temperature": 0, "max_tokens": 12}
    body |= in_mode(mode, show_drafts=drafts)
    options = {"stream_options": {"include_usage": True}, **LOGPROBS[path]}
    chunks, ended = read(url, path, {**body, **options, **INPUT[path]})
    assert ended == "done"
    letters = shape(chunks, path)
    start = "R" if path == CHAT else ""
    assert letters == start + "T" * (len(letters) - len(start) - 2) + "FU"
    assert all("usage" in chunk for chunk in chunks)
    frames = [chunk["trimode"] for chunk in chunks if "trimode" in chunk]
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    assert bool(frames) == drafts
    commits = [frame for frame in frames if frame["type"] == "commit"]
    places = [(frame["start"], frame["start"] + frame["length"]) for frame in commits]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(places))
    for commit in commits:
        assert len(commit["texts"]) == commit["length"]
    cycles = [frame["cycle"] for frame in commits if "cycle" in frame]
    assert cycles == sorted(cycles)
    if drafts:
        prompt = chunks[-1]["usage"]["prompt_tokens"]
        committed = prompt
        for frame in frames:
            assert frame["start"] == committed, "a draft shows nothing that is committed"
            committed += frame.get("length", 0)
        assert places[0][0] == prompt
        assert places[-1][1] == prompt + chunks[-1]["usage"]["completion_tokens"]
        passes = [frame["nfe"] for frame in frames]
        assert passes == sorted(passes)
        assert passes[-1] == chunks[-1]["metrics"]["decoding"]["nfe"]


@pytest.mark.parametrize("path", CHUNKS)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"n": 3, "seed": 1, "temperature": 1},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"continuous_usage_stats": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}, "n": 2},
        {"stop": ["a", "b", "c"]},
        {"decoding": {"mode": "linear", "show_drafts": True, "block_length": 3}, "n": 2},
    ],
)
def test_a_stream_of_any_kind_validates(url, path, more):
    body = {"model": "tiny", "max_tokens": 8, "ignore_eos": True, **INPUT[path], **more}
    chunks, ended = read(url, path, body)
    assert ended == "done"
    finished = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(finished) == list(range(more.get("n", 1)))
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    if "stream_options" not in more:
        assert not any("usage" in chunk for chunk in chunks)


@pytest.mark.parametrize("mode", ["ar", "linear", "auto"])
def test_streams_of_calls_and_schemas_validate(url, mode):
    body = {"model": "tiny", "max_tokens": 200, "temperature": 0, **INPUT[CHAT]}
    decoding = in_mode(mode, show_drafts=True)
    asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    chunks, ended = read(url, CHAT, {**body, **asked, **decoding})
    assert ended == "done"
    letters = shape(chunks, CHAT)
    assert re.fullmatch("R[TC]*CT*F", letters)
    chunks, ended = read(url, CHAT, {**body, "response_format": FORM, **decoding})
    assert ended == "done"


def test_streams_of_echoes_validate(url):
    body = {"model": "tiny", "prompt": ["abc", "de"], "echo": True, "logprobs": 1}
    for more in ({"max_tokens": 0}, {"max_tokens": 3, "ignore_eos": True}):
        chunks, ended = read(url, TEXT, {**body, **more, "stream_options": {"include_usage": True}})
        assert ended == "done"
        texts = {0: "", 1: ""}
        for chunk in chunks:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts[0].startswith("abc")
        assert texts[1].startswith("de")
        usage = chunks[-1]["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 2 * more["max_tokens"])


@pytest.mark.parametrize("path", CHUNKS)
@pytest.mark.parametrize("drafts", [False, True])
def test_a_stream_that_fails_ends_with_an_error_object(model, path, drafts):
    long = GenerationOptions(max_tokens=900, ignore_eos=True)
    with serving(model, request_timeout=0.1, defaults=long) as (url, _):
        decoding = {"mode": "diffusion" if drafts else "ar", "show_drafts": drafts}
        chunks, ended = read(url, path, {"model": "tiny", "decoding": decoding, **INPUT[path]})
    assert ended == "not finished within 0.1 seconds"
    assert "F" not in shape(chunks, path)


def test_the_schema_is_closed():
    """The reader itself: what it would have to find."""
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
    good = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "system_fingerprint": "f", "choices": [choice]}  # fmt: skip
    ChatChunk.model_validate(good)
    for wrong in (
        {**good, "event": {}},
        {**good, "type": "response.created"},
        {**good, "choices": None},
        {**good, "choices": [{**choice, "finish_reason": "cancelled"}]},
        {**good, "choices": [{k: v for k, v in choice.items() if k != "finish_reason"}]},
        {**good, "choices": [{**choice, "delta": {"trimode": {}}}]},
    ):
        with pytest.raises(ValidationError):
            ChatChunk.model_validate(wrong)
