"""`usage`: at the end, in every chunk, with its details."""

import httpx2 as httpx
import pytest

from tests.server.asking import (
    HI,
    MODES,
    ask,
    in_mode,
)
from tests.server.stream_reader import CHUNKS, read


def test_usage_comes_last_and_alone_when_asked_for(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == ask(client).usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("path", CHUNKS)
def test_usage_comes_when_asked_and_is_null_before(url, path):
    """`stream_options.include_usage`."""
    body = {"model": "tiny", "max_tokens": 4, "prompt": "a", "messages": HI}
    chunks, _ = read(url, path, body)
    assert not any("usage" in chunk for chunk in chunks)
    *others, last = read(url, path, {**body, "stream_options": {"include_usage": True}})[0]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in others)
    answer = httpx.post(url + path, json={**body, "stream_options": {"include_usage": True}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize("mode", MODES)
def test_continuous_usage_counts_what_was_sent(client, mode):
    """`continuous_usage_stats`: never ahead of the chunk it is in."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    seen = 0
    for chunk in ask(client, stream=True, max_tokens=40, logprobs=True, stream_options=options,
                     extra_body={**in_mode(mode), "ignore_eos": True}):  # fmt: skip
        for choice in chunk.choices:
            seen += len(choice.logprobs.content) if choice.logprobs else 0
        assert chunk.usage.completion_tokens == seen
        assert chunk.usage.total_tokens == chunk.usage.prompt_tokens + seen
    assert seen == 40


def test_usage_has_its_details(client):
    """Cached tokens are part of the prompt, however many choices share it."""
    fields = {"messages": [{"role": "user", "content": "what was said before"}], "max_tokens": 2}
    first, again, three = ask(client, **fields), ask(client, **fields), ask(client, n=3, **fields)
    assert first.usage.completion_tokens_details.reasoning_tokens == 0
    assert first.usage.completion_tokens_details.accepted_prediction_tokens is None
    assert first.usage.prompt_tokens_details.cached_tokens < first.usage.prompt_tokens - 10
    for answer in (again, three):
        assert answer.usage.prompt_tokens == first.usage.prompt_tokens
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert first.usage.prompt_tokens - 2 <= cached <= first.usage.prompt_tokens
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )
