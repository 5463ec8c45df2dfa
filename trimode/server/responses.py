"""/v1/responses for text: the request as a chat request, the answer as items and typed events."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, StrictInt, StrictStr

from trimode.errors import InputError
from trimode.server.frames import ModeReason, finish, metrics, usage
from trimode.server.protocol import (
    Body,
    ChatRequest,
    Harmless,
    refuse_unsupported,
    unknown_fields,
)
from trimode.server.streaming import PING, following, line, to_the_end
from trimode.server.worker import EngineFailedError, Request

_NOT_HONOURED: dict[str, Harmless] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
"""Fields that need a memory of earlier answers, or more than text; with harmless values."""

_IGNORED = frozenset(("parallel_tool_calls", "store", "stream_options"))
"""Known and without effect here: nothing is kept, and each event says where it belongs."""

NAMES = {
    "choices": "input",
    "grammar": "text.format",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "mode": "decoding.mode",
    "block_length": "decoding.block_length",
    "threshold": "decoding.threshold",
    "revision_threshold": "decoding.revision_threshold",
    "prompt": "input",
    "response_format.type": "text.format.type",
    "response_format.json_schema.schema": "text.format.schema",
}
"""What the body calls the fields that chat and the engine know."""


_ROLES = ("user", "assistant", "system", "developer")


class ResponseRequest(Body):
    """Body of /v1/responses."""

    input: StrictStr | list[dict[str, Any]]
    instructions: StrictStr | None = None
    max_output_tokens: StrictInt | None = Field(None, ge=1)
    text: dict[str, Any] | None = None

    @property
    def unknown(self) -> dict[str, Any]:
        """Fields that no rule of ours names."""
        found = unknown_fields(self.model_extra or {}, _NOT_HONOURED)
        return {name: value for name, value in found.items() if name not in _IGNORED}

    def as_chat(self) -> ChatRequest:
        """The same as a chat request.

        Raises:
            InputError: a field asks for what this server does not do.
        """
        refuse_unsupported(self.model_extra or {}, _NOT_HONOURED)
        if self.decoding.show_drafts:
            raise InputError("decoding.show_drafts", "true", "only with /v1/chat/completions")
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [_message(item, i) for i, item in enumerate(self.input)]
        if not messages:
            raise InputError("input", "empty", "must hold at least one message")
        form = (self.text or {}).get("format")
        if form is not None and not isinstance(form, dict):
            raise InputError("text.format", repr(form), "must be an object")
        if form and form.get("type") == "json_schema":  # flat here, nested in chat
            form = {"type": "json_schema", "json_schema": form}
        fields = {
            "model": self.model,
            "messages": messages,
            "stream": self.stream,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "response_format": form,
        }
        return ChatRequest.model_validate({**fields, "decoding": self.decoding.model_dump()})


def _message(item: dict[str, Any], index: int) -> dict[str, Any]:
    if item.get("type", "message") != "message":
        found = repr(item.get("type"))
        raise InputError(f"input[{index}].type", found, "allowed: message")
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise InputError(f"input[{index}].role", repr(role), f"allowed: {', '.join(_ROLES)}")
    if isinstance(content, list):
        texts = []
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("input_text", "output_text", "text"):
                place = f"input[{index}].content[{j}].type"
                raise InputError(place, repr(kind), "allowed: input_text, output_text")
            texts.append(str(part.get("text", "")))
        content = "".join(texts)
    if not isinstance(content, str):
        raise InputError(f"input[{index}].content", repr(content), "must be text or text parts")
    return {"role": role, "content": content}


@dataclass(slots=True)
class Response:
    """One answer on its way."""

    asked: ResponseRequest
    mode_reason: ModeReason
    id: str = field(default_factory=lambda: f"resp_{secrets.token_hex(12)}")
    item_id: str = field(default_factory=lambda: f"msg_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def part(self, text: str) -> dict[str, Any]:
        """The content of the message."""
        return {"type": "output_text", "text": text, "annotations": []}

    def item(self, status: str, text: str | None) -> dict[str, Any]:
        """The one output item."""
        content = [] if text is None else [self.part(text)]
        return {
            "type": "message",
            "id": self.item_id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def whole(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The response object."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.asked.instructions,
            "max_output_tokens": self.asked.max_output_tokens,
            "model": self.asked.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.asked.temperature,
            "text": self.asked.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
            **more,
        }

    def finished(self, request: Request, text: str, reason: str) -> dict[str, Any]:
        """The response at its end."""
        counted = usage([request.sequence])
        status = "completed" if reason == "stop" else "incomplete"
        more: dict[str, Any] = {
            "usage": {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": {
                    "cached_tokens": counted["prompt_tokens_details"]["cached_tokens"],
                    "cache_write_tokens": 0,
                },
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counted["total_tokens"],
            },
            "metrics": metrics([request.sequence], self.mode_reason),
        }
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        return self.whole(status, [self.item(status, text)], **more)


async def whole(response: Response, request: Request, timeout: float) -> dict[str, Any]:
    """The response as one object."""
    text, reason = "", ""
    async for _, step in to_the_end([request], timeout):
        text += step.update.text
        if step.finish_reason is not None:
            reason = finish(step.finish_reason)
    return response.finished(request, text, reason)


async def events(
    response: Response, request: Request, timeout: float, ping_interval: float
) -> AsyncIterator[bytes]:
    """Typed server-sent events, numbered."""
    number = 0
    where = {"item_id": response.item_id, "output_index": 0, "content_index": 0}

    def event(kind: str, **body: Any) -> bytes:
        nonlocal number
        data = {"type": f"response.{kind}", "sequence_number": number, **body}
        number += 1
        return f"event: response.{kind}\n".encode() + line(data)

    started = response.whole("in_progress", [])
    yield event("created", response=started)
    yield event("in_progress", response=started)
    item = response.item("in_progress", None)
    yield event("output_item.added", output_index=0, item=item)
    yield event("content_part.added", **where, part=response.part(""))
    text, reason = "", ""
    try:
        async for found in following([request], timeout, ping_interval):
            if found is None:
                yield PING
                continue
            _, step = found
            text += step.update.text
            if step.update.text:
                yield event("output_text.delta", **where, delta=step.update.text, logprobs=[])
            if step.finish_reason is not None:
                reason = finish(step.finish_reason)
    except (TimeoutError, EngineFailedError) as error:
        message = str(error) or f"not finished within {timeout:g} seconds"
        failure = {"code": "server_error", "message": message}
        failed = {**started, "status": "failed", "error": failure}
        yield event("failed", response=failed)
        return
    done = response.finished(request, text, reason)
    yield event("output_text.done", **where, text=text, logprobs=[])
    yield event("content_part.done", **where, part=response.part(text))
    yield event("output_item.done", output_index=0, item=done["output"][0])
    yield event(done["status"], response=done)
