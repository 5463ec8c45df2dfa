"""/v1/responses for text: body, route and wire form (items and typed events)."""

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import Field, StrictInt, StrictStr

from trimode.errors import InputError
from trimode.server.http.delivery import PING, EventStream, named_event, send_object, too_late
from trimode.server.http.errors import fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.openai.answer import new_id
from trimode.server.openai.fields import DECODING_NAMES, Body, HarmlessValues
from trimode.server.openai.options import resolve_options
from trimode.server.openai.tools import answer_form, chat_prompt
from trimode.server.openai.usage import ModeReason, decoding_metrics, finish_reason_of, usage
from trimode.server.runtime import ActiveRequest, EngineFailedError
from trimode.server.service import Service

_NAMES = {
    **DECODING_NAMES,
    "choices": "input",
    "grammar": "text.format",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "response_format.type": "text.format.type",
    "response_format.json_schema.schema": "text.format.schema",
}
"""What the body calls what chat and the engine know under other names."""

_ROLES = ("user", "assistant", "system", "developer")


class ResponseBody(Body):
    """Body of /v1/responses."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
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
    """Fields that need a memory of earlier answers, or more than text."""
    without_effect: ClassVar[frozenset[str]] = Body.without_effect | {
        "parallel_tool_calls",
        "store",
        "stream_options",
    }
    """Nothing is stored, and each event says where it belongs."""

    input: StrictStr | list[dict[str, Any]]
    instructions: StrictStr | None = None
    max_output_tokens: StrictInt | None = Field(None, ge=1)
    text: dict[str, Any] | None = None

    def refuse_unsupported(self) -> None:
        """Raise InputError if a known field asks for what this endpoint does not do."""
        if self.decoding.given().get("show_drafts"):
            raise InputError("decoding.show_drafts", "true", "only with /v1/chat/completions")
        super().refuse_unsupported()

    def messages(self) -> list[dict[str, Any]]:
        """Instructions and input as chat messages.

        Raises:
            InputError: an item is not a message of text, or there is none.
        """
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            messages += [_message(item, i) for i, item in enumerate(self.input)]
        if not messages:
            raise InputError("input", "empty", "must hold at least one message")
        return messages

    def response_format(self) -> dict[str, Any] | None:
        """`text.format` as chat's `response_format`: a schema is flat here and nested there.

        Raises:
            InputError: it is not an object.
        """
        form = (self.text or {}).get("format")
        if form is not None and not isinstance(form, dict):
            raise InputError("text.format", repr(form), "must be an object")
        if form and form.get("type") == "json_schema":
            return {"type": "json_schema", "json_schema": form}
        return form


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""

    @app.post("/v1/responses", dependencies=generation_guards(service))
    async def responses(body: ResponseBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        with fields_named(_NAMES):
            body.refuse_unsupported()
            messages = body.messages()
            form = answer_form(None, None, body.response_format(), parallel=False)
            resolved = resolve_options(
                service, body, max_tokens=body.max_output_tokens, grammar=form.grammar
            )
            prompt = chat_prompt(service.model, messages, form)
            response = ResponseState(body, resolved.mode_reason)
            (request,) = await service.submit(
                resolved.over(prompt, service.model),
                operation="chat",
                model_name=body.model,
                answer_id=response.id,
                headers=http.headers,
                stream=bool(body.stream),
            )
        settings, free = service.settings, partial(service.cancel, [request])
        timeout = settings.request_timeout
        if body.stream:
            events = response.events(request, timeout, settings.ping_interval)
            return EventStream(events, request.channel, free)
        return await send_object(http, response.complete_object(request, timeout), timeout, free)


@dataclass(slots=True)
class ResponseState:
    """One response: what its object and all its events share."""

    body: ResponseBody
    mode_reason: ModeReason
    id: str = field(default_factory=lambda: new_id("resp"))
    item_id: str = field(default_factory=lambda: new_id("msg"))
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

    def response_object(
        self, status: str, output: list[dict[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """The response object at any time."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "model": self.body.model,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self.body.temperature,
            "text": self.body.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self.body.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": {},
            **more,
        }

    def finished_object(self, request: ActiveRequest, text: str, reason: str) -> dict[str, Any]:
        """The response object at its end."""
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
            "metrics": decoding_metrics([request.sequence], self.mode_reason),
        }
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        return self.response_object(status, [self.item(status, text)], **more)

    async def complete_object(self, request: ActiveRequest, timeout: float) -> dict[str, Any]:
        """The finished response.

        Raises:
            TimeoutError: it is not finished in time.
        """
        text, reason = "", ""
        async for _, step in request.channel.follow_to_end(1, timeout):
            text += step.update.text
            if step.finish_reason is not None:
                reason = finish_reason_of(step.finish_reason)
        return self.finished_object(request, text, reason)

    async def events(
        self, request: ActiveRequest, timeout: float, ping_interval: float
    ) -> AsyncIterator[bytes]:
        """Typed server-sent events, numbered."""
        number = 0
        where = {"item_id": self.item_id, "output_index": 0, "content_index": 0}

        def typed(kind: str, **fields: Any) -> bytes:
            nonlocal number
            data = {"type": f"response.{kind}", "sequence_number": number, **fields}
            number += 1
            return named_event(f"response.{kind}", data)

        started = self.response_object("in_progress", [])
        yield typed("created", response=started)
        yield typed("in_progress", response=started)
        item = self.item("in_progress", None)
        yield typed("output_item.added", output_index=0, item=item)
        yield typed("content_part.added", **where, part=self.part(""))
        text, reason = "", ""
        try:
            async for found in request.channel.follow(1, timeout, ping_interval):
                if found is None:
                    yield PING
                    continue
                _, step = found
                text += step.update.text
                if step.update.text:
                    yield typed("output_text.delta", **where, delta=step.update.text, logprobs=[])
                if step.finish_reason is not None:
                    reason = finish_reason_of(step.finish_reason)
        except (TimeoutError, EngineFailedError) as error:
            failure = {"code": "server_error", "message": str(error) or too_late(timeout)}
            yield typed("failed", response={**started, "status": "failed", "error": failure})
            return
        done = self.finished_object(request, text, reason)
        yield typed("output_text.done", **where, text=text, logprobs=[])
        yield typed("content_part.done", **where, part=self.part(text))
        yield typed("output_item.done", output_index=0, item=done["output"][0])
        yield typed(done["status"], response=done)


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
