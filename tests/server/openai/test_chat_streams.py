"""Streams of /v1/chat/completions: text, order, drafts, chunks of many tokens."""

import json

import pytest

from tests.server.asking import (
    HI,
    LOSSLESS,
    MODES,
    ask,
    constant,
    in_mode,
    text_of,
)
from tests.server.stream_reader import CHAT, read


@pytest.mark.parametrize("mode", ["ar", "linear", "diffusion"])
def test_a_stream_carries_the_same_text_and_ends_once(client, mode):
    body = in_mode(mode)
    whole = ask(client, extra_body=body)
    chunks = list(ask(client, stream=True, extra_body=body))
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


@pytest.mark.parametrize("mode", MODES)
def test_chunks_come_in_their_order_with_one_finish(client, mode):
    """Role, text, one `finish_reason`, usage, `[DONE]`."""
    chunks = [*ask(client, stream=True, stream_options={"include_usage": True}, max_tokens=9,
                   extra_body=in_mode(mode, show_drafts=True))]  # fmt: skip
    first, *texts, finish, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert not any(c.choices[0].finish_reason or c.choices[0].delta.role for c in texts)
    assert finish.choices[0].finish_reason in ("stop", "length")
    assert usage.choices == []


def test_the_first_chunk_has_the_role_and_empty_content(client, url):
    """What the client's helper builds its snapshot from."""
    chunks, _ = read(url, CHAT, {"model": "tiny", "messages": HI, "max_tokens": 2, "n": 2})
    for index in (0, 1):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
    for drafts in (False, True):
        with client.chat.completions.stream(
            model="tiny", messages=HI, temperature=0, stream_options={"include_usage": True},
            extra_body=in_mode("linear", show_drafts=drafts),
        ) as events:  # fmt: skip
            snapshot = [event for event in events if event.type == "chunk"][-1].snapshot
        assert snapshot.choices[0].message.role == "assistant"
        assert snapshot.choices[0].message.content == ask(client).choices[0].message.content
        assert snapshot.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", LOSSLESS)
def test_no_chunk_holds_half_a_character(client, mode):
    """One token a byte here: a character of four comes out of four commits."""
    form = constant("é€😀ß")
    chunks = [*ask(client, stream=True, response_format=form, max_tokens=60,
                   extra_body=in_mode(mode, 3, show_drafts=True))]  # fmt: skip
    pieces = [c.choices[0].delta.content or "" for c in chunks]
    assert "�" not in "".join(pieces)
    assert json.loads("".join(pieces)) == {"t": "é€😀ß"}
    frames = [c.model_extra["trimode"] for c in chunks if "trimode" in c.model_extra]
    commits = [frame for frame in frames if frame["type"] == "commit"]
    assert "".join("".join(frame["texts"]) for frame in commits) == "".join(pieces)


@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_of_many_tokens_loses_none(plain, mode):
    """Text, logprobs and usage agree chunk by chunk, also where a stop string cuts a block."""
    full = ask(plain, max_tokens=24).choices[0].message.content
    prediction = {"prediction": {"type": "content", "content": full}} if mode == "auto" else {}
    fields = {"max_tokens": 24, "logprobs": True, "stream": True, **prediction}
    body = in_mode(mode, 6, **({"threshold": 0.0} if mode == "diffusion" else {}))
    chunks = [*ask(plain, extra_body=body, **fields)]
    texts = [chunk for chunk in chunks if chunk.choices[0].logprobs]
    sizes = [len(chunk.choices[0].logprobs.content) for chunk in texts]
    assert sum(sizes) == 24
    assert mode not in ("diffusion", "auto") or max(sizes) > 1
    for chunk in texts:
        rows = chunk.choices[0].logprobs.content
        assert "".join(row.token for row in rows) == chunk.choices[0].delta.content
    text = "".join(chunk.choices[0].delta.content for chunk in texts)
    cut = [*ask(plain, stop=text[8:11], extra_body=body, **fields)]
    rows = [row for c in cut if c.choices[0].logprobs for row in c.choices[0].logprobs.content]
    stopped = text.index(text[8:11]) + 3
    assert "".join(row.token for row in rows) == text[:stopped]


def test_drafts_are_sent_to_those_who_ask_and_do_not_disturb_the_text(client):
    body = {"decoding": {"mode": "diffusion", "block_length": 6, "show_drafts": True}}
    chunks = list(ask(client, stream=True, extra_body=body))
    frames = [c.model_extra["trimode"] for c in chunks if "trimode" in (c.model_extra or {})]
    assert {"draft", "commit"} == {frame["type"] for frame in frames}
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    plain = ask(client, extra_body={"decoding": {"mode": "diffusion", "block_length": 6}})
    assert text_of(chunks) == plain.choices[0].message.content
    for frame in frames:
        if frame["type"] == "draft":
            assert {state for _, _, state in frame["tokens"]} <= {"mask", "new", "kept", "revised"}


def test_choices_is_never_null_in_frames_either(client):
    """Draft frames keep an empty choice, so `chunk.choices[0]` works."""
    asked = {"stream": True, "extra_body": in_mode("diffusion", show_drafts=True)}
    frames = [c for c in ask(client, **asked) if (c.model_extra or {}).get("trimode")]
    drafts = [c for c in frames if c.model_extra["trimode"]["type"] == "draft"]
    assert drafts
    for chunk in drafts:
        assert chunk.choices[0].delta.model_dump(exclude_unset=True) == {}
        assert chunk.choices[0].finish_reason is None
