"""A reader of server-sent events that takes nothing but the published chunks.

The models are those of OpenAI's API reference (`chat.completion.chunk`, `text_completion`), strict
and closed: a wrong type, a missing key or one that is not listed fails. Ours beside them are
`metrics` and `timings` in the usage chunk and `trimode` in frames (docs/streaming.md).
"""

import http.client
import json
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Finish = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TopLogprob(Strict):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Strict):
    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None


class Function(Strict):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(Strict):
    index: Count
    id: str | None = None
    type: Literal["function"] | None = None
    function: Function | None = None


class Delta(Strict):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChoice(Strict):
    index: Count
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None


class CompletionLogprobs(Strict):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class TextChoice(Strict):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"] | None


class PromptDetails(Strict):
    cached_tokens: Count


class CompletionDetails(Strict):
    reasoning_tokens: Count
    accepted_prediction_tokens: Count | None = None
    rejected_prediction_tokens: Count | None = None


class Usage(Strict):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Draft(Strict):
    type: Literal["draft"]
    seq: Count
    choice: Count
    block: Count
    step: Count
    nfe: Count
    mode: str
    start: Count
    tokens: list[tuple[str, float, Literal["mask", "new", "kept", "revised"]]]

    model_config = ConfigDict(extra="forbid", strict=False)  # JSON has no tuples


class Commit(Strict):
    type: Literal["commit"]
    seq: Count
    choice: Count
    block: Count
    step: Count
    nfe: Count
    start: Count
    length: Count
    texts: list[str]
    drafted: Count | None = None
    accepted: Count | None = None
    cycle: Count | None = None
    plan: str | None = None


class Chunk(Strict):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage | None = None
    metrics: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    trimode: Annotated[Draft | Commit, Field(discriminator="type")] | None = None


class ChatChunk(Chunk):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChoice]


class TextChunk(Chunk):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class Error(Strict):
    message: Annotated[str, Field(min_length=1)]
    type: str
    param: str | None
    code: str | None


class ErrorBody(Strict):
    error: Error


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CHUNKS = {CHAT: ChatChunk, TEXT: TextChunk}


def post(url: str, path: str, body: dict[str, Any]) -> tuple[http.client.HTTPResponse, str]:
    """The answer to a body, and its text."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body).encode(), headers)
    answer = connection.getresponse()
    return answer, answer.read().decode()  # the whole stream must be UTF-8


def raw_events(url: str, path: str, body: dict[str, Any]) -> list[str]:
    """The events of a stream as they are on the wire, comments included."""
    answer, text = post(url, path, {"stream": True, **body})
    assert answer.status == 200, text
    assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert text.endswith("\n\n")
    return text.removesuffix("\n\n").split("\n\n")


def read(url: str, path: str, body: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """The chunks of a stream, each checked, and how it ended: `done` or the error's message."""
    chunks, ended = [], ""
    for event in raw_events(url, path, body):
        if event.startswith(":"):
            continue
        assert not ended, f"after the end: {event}"
        assert event.startswith("data: "), event
        assert "\n" not in event, "one line an event"
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            ended = "done"
            continue
        found = json.loads(data)
        if "error" in found:
            ended = ErrorBody.model_validate(found).error.message
            continue
        CHUNKS[path].model_validate(found)
        chunks.append(found)
    return chunks, ended
