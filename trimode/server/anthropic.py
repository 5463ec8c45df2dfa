"""Anthropic's /v1/messages: body, routes and wire form.

The form is that of Anthropic's API reference, version 2023-06-01.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import Field, StrictStr

from trimode.errors import InputError
from trimode.server.anthropic_input import (
    Message,
    choice_of,
    merged,
    messages_of,
    read_tools,
    text_of,
)
from trimode.server.choices import Turn, begin_turn
from trimode.server.dialogue.constraints import of_response_format
from trimode.server.dialogue.follow import Ended, follow, whole
from trimode.server.dialogue.prepare import Conversation
from trimode.server.dialogue.reader import Arguments, CallBegun, Part, Thought
from trimode.server.dialogue.tools import Tool
from trimode.server.http.delivery import (
    EventStream,
    named_event,
    send_object,
    too_late,
    warning_header,
)
from trimode.server.http.errors import CONTEXT_LENGTH_CODE, ApiError, fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.openai.answer import new_id
from trimode.server.openai.fields import (
    DECODING_NAMES,
    Body,
    HarmlessValues,
    Limit,
    stop_strings,
)
from trimode.server.openai.usage import decoding_metrics, usage
from trimode.server.runtime import EngineFailedError
from trimode.server.service import Service

PATH = "/v1/messages"

_NAMES = {
    **DECODING_NAMES,
    "prompt": "messages",
    "max_thinking_tokens": "thinking.budget_tokens",
}
"""What the body calls what the engine knows under other names."""

_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


_NO_THREADS = "thread_unsupported_request"
"""The code at which Anthropic's clients send the whole conversation instead."""


def error_object(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Anthropic's error object."""
    kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if code == CONTEXT_LENGTH_CODE:
        message = f"prompt is too long: {message}"  # the words that clients look for
    error: dict[str, Any] = {"type": kind, "message": message}
    if code is not None:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error}


class MessagesBody(Body):
    """Body of /v1/messages and of its /count_tokens."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
        "container": (),
        "mcp_servers": ([],),
    }
    without_effect: ClassVar[frozenset[str]] = Body.without_effect | {
        "betas",
        "cache_control",
        "inference_geo",
        "speed",
    }

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: Limit = Field(None, ge=1)
    """Anthropic requires it; without it the server's limit holds."""
    system: StrictStr | list[dict[str, Any]] | None = None
    stop_sequences: list[StrictStr] | None = None
    top_k: Limit = None
    tools: list[Any] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    thread: dict[str, Any] | None = None
    """Asks that the server remember the conversation, or continues one."""

    def refuse_unsupported(self) -> None:
        """Raise InputError if a known field asks for what this endpoint does not do.

        Raises:
            ApiError: the request asks the server to remember the conversation.
        """
        if self.thread is not None:
            message = "thread: nothing is stored here; send the whole conversation as messages"
            raise ApiError(400, message, param="thread", code=_NO_THREADS)
        if self.decoding.given().get("show_drafts"):
            raise InputError("decoding.show_drafts", "true", "only with /v1/chat/completions")
        super().refuse_unsupported()

    def conversation(self, tools: tuple[Tool, ...]) -> Conversation:
        """What the request says, in OpenAI's terms.

        Raises:
            InputError: a message or a choice is not as Anthropic defines it.
        """
        messages: list[Message] = []
        if self.system:
            messages.append({"role": "system", "content": text_of(self.system, "system")})
        for i, message in enumerate(self.messages):
            messages += messages_of(message, f"messages[{i}]")
        form = self.output_format or (self.output_config or {}).get("format")
        kind = (self.thinking or {}).get("type")
        if kind not in (None, "enabled", "disabled", "adaptive"):
            raise InputError("thinking.type", repr(kind), "allowed: enabled, disabled, adaptive")
        return Conversation(
            messages=merged(messages),
            choice=choice_of(tools, self.tool_choice),
            constraint=of_response_format(form, "output_format"),
            variables={} if kind is None else {"enable_thinking": kind != "disabled"},
        )

    def given_options(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that the body gives."""
        thinking = self.thinking or {}
        budget = thinking.get("budget_tokens") if thinking.get("type") == "enabled" else None
        if budget is not None and (type(budget) is not int or budget < 0):
            raise InputError("thinking.budget_tokens", repr(budget), "must be a whole number")
        return {
            **super().given_options(),
            "max_tokens": self.max_tokens,
            "top_k": self.top_k,
            "stop": stop_strings(self.stop_sequences, "stop_sequences"),
            "max_thinking_tokens": budget,
        }


def _warnings(body: MessagesBody) -> list[str]:
    """What of a request is left undone without changing what the answer says."""
    if not body.context_management:
        return []
    return ["context_management: nothing is cleared from a conversation here"]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    guards = generation_guards(service)

    @app.post(PATH, dependencies=guards)
    async def messages(body: MessagesBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        body.refuse_unsupported()
        tools, warnings = read_tools(body.tools)
        answer_id = new_id("msg_")
        given = body.given_options()
        if given["max_thinking_tokens"] is not None and not service.dialect.thinks:
            given["max_thinking_tokens"] = None
            warnings.append("thinking: this model does not think")
        with fields_named(_NAMES):
            turn = await begin_turn(
                service,
                body.conversation(tools),
                body.model,
                given,
                answer_id=answer_id,
                headers=http.headers,
                stream=bool(body.stream),
            )
        answer = MessageState(answer_id, body.model or service.name, turn)
        settings, free = service.settings, partial(service.cancel, [turn.request])
        timeout = settings.request_timeout
        headers = warning_header([*_warnings(body), *warnings, *turn.form.warnings])
        if body.stream:
            events = answer.events(timeout, settings.ping_interval)
            return EventStream(events, turn.request.channel, free, headers=headers)
        return await send_object(http, answer.whole(timeout), timeout, free, headers=headers)

    @app.post(f"{PATH}/count_tokens", dependencies=guards)
    async def count_tokens(body: MessagesBody) -> dict[str, Any]:
        body.refuse_unsupported()
        tools, _ = read_tools(body.tools)
        with fields_named(_NAMES):
            prompt, _ = await service.prepare(body.conversation(tools))
        return {"input_tokens": len(prompt.tokens)}


@dataclass(slots=True)
class MessageState:
    """One answer: what its object and its events share."""

    id: str
    model_name: str
    turn: Turn
    blocks: list[dict[str, Any]] = field(default_factory=list)
    """Content blocks of a stream so far, as they began."""

    def object(self, content: list[dict[str, Any]], ended: Ended | None) -> dict[str, Any]:
        """The message, at its beginning or at its end."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model_name,
            "content": content,
            "stop_reason": None if ended is None else self._stop_reason(ended),
            "stop_sequence": None if ended is None else ended.stop_string,
            "usage": self._usage(ended),
        }

    async def whole(self, timeout: float) -> dict[str, Any]:
        """The finished message.

        Raises:
            TimeoutError: it is not finished in time.
        """
        ended = await whole(self.turn.request, self.turn.form, timeout)
        reader = ended.reader
        content: list[dict[str, Any]] = []
        if reader.thought:
            content.append({"type": "thinking", "thinking": reader.thought, "signature": ""})
        if reader.content or not reader.calls:
            content.append({"type": "text", "text": reader.content})
        content += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}
            for call in reader.calls
            if (arguments := call.parsed) is not None
        ]
        found = self.object(content, ended)
        sequence = self.turn.request.sequence
        return {**found, "metrics": decoding_metrics([sequence], self.turn.mode_reason)}

    async def events(self, timeout: float, ping_interval: float) -> AsyncIterator[bytes]:
        """Server-sent events of Anthropic's kinds."""
        yield _event("message_start", message=self.object([], None))
        yield _event("ping")
        try:
            async for found in follow(self.turn.request, self.turn.form, timeout, ping_interval):
                if found is None:
                    yield _event("ping")
                elif isinstance(found, Ended):
                    for event in self._last(found):
                        yield event
                else:
                    for event in self._next(found):
                        yield event
        except (TimeoutError, EngineFailedError) as error:
            status = error.status if isinstance(error, EngineFailedError) else 408
            yield named_event("error", error_object(status, str(error) or too_late(timeout)))

    def _next(self, part: Part) -> Iterator[bytes]:
        """The events of a part: perhaps a new block, and its delta."""
        if isinstance(part, CallBegun):
            yield from self._begin(
                {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
            )
            return
        if isinstance(part, Arguments):
            delta = {"type": "input_json_delta", "partial_json": part.text}
        elif isinstance(part, Thought):
            if self._open != "thinking":
                yield from self._begin({"type": "thinking", "thinking": "", "signature": ""})
            delta = {"type": "thinking_delta", "thinking": part.text}
        else:
            if self._open != "text":
                yield from self._begin({"type": "text", "text": ""})
            delta = {"type": "text_delta", "text": part.text}
        yield _event("content_block_delta", index=len(self.blocks) - 1, delta=delta)

    def _last(self, ended: Ended) -> Iterator[bytes]:
        yield from self._end_block()
        delta = {"stop_reason": self._stop_reason(ended), "stop_sequence": ended.stop_string}
        sequence = self.turn.request.sequence
        metrics = decoding_metrics([sequence], self.turn.mode_reason)
        yield _event("message_delta", delta=delta, usage=self._usage(ended), metrics=metrics)
        yield _event("message_stop")

    @property
    def _open(self) -> str | None:
        """The kind of the present block."""
        return self.blocks[-1]["type"] if self.blocks else None

    def _begin(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self._end_block()
        self.blocks.append(block)
        yield _event("content_block_start", index=len(self.blocks) - 1, content_block=block)

    def _end_block(self) -> Iterator[bytes]:
        if not self.blocks:
            return
        index = len(self.blocks) - 1
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": ""}
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)

    def _stop_reason(self, ended: Ended) -> str:
        if ended.cut_off:
            return "max_tokens"
        if ended.stop_string is not None:
            return "stop_sequence"
        return "tool_use" if ended.reader.calls else "end_turn"

    def _usage(self, ended: Ended | None) -> dict[str, Any]:
        """Anthropic counts tokens from the cache apart from the others."""
        counted = usage([self.turn.request.sequence], None if ended else 0)
        cached = counted["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": counted["prompt_tokens"] - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": counted["completion_tokens"],
        }


def _event(kind: str, **fields: Any) -> bytes:
    return named_event(kind, {"type": kind, **fields})
