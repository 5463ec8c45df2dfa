"""/v1/responses: body, route and wire form (items and typed events)."""

import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from pydantic import Field, StrictBool, StrictStr

from trimode.errors import InputError
from trimode.server.choices import Turn, begin_turn
from trimode.server.dialogue.constraints import of_response_format
from trimode.server.dialogue.follow import Ended, follow, whole
from trimode.server.dialogue.prepare import Conversation, template_variables
from trimode.server.dialogue.reader import Arguments, CallBegun, Content, Part, Thought
from trimode.server.dialogue.tools import choose
from trimode.server.http.delivery import (
    PING,
    EventStream,
    named_event,
    send_object,
    too_late,
    warning_header,
)
from trimode.server.http.errors import fields_named
from trimode.server.http.guards import generation_guards
from trimode.server.openai.answer import new_id
from trimode.server.openai.fields import DECODING_NAMES, Body, HarmlessValues, Limit
from trimode.server.openai.response_input import ResponseTools, messages_of, read_tools
from trimode.server.openai.usage import decoding_metrics, usage
from trimode.server.runtime import ActiveRequest, EngineFailedError
from trimode.server.service import Service

_NAMES = {
    **DECODING_NAMES,
    "choices": "input",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "reasoning_effort": "reasoning.effort",
}
"""What the body calls what chat and the engine know under other names."""


class ResponseBody(Body):
    """Body of /v1/responses."""

    not_honoured: ClassVar[Mapping[str, HarmlessValues]] = {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "max_tool_calls": (),
        "moderation": (),
        "prompt": (),
        "top_logprobs": (0,),
    }
    """Fields that need a memory of earlier answers, or more than text."""
    without_effect: ClassVar[frozenset[str]] = Body.without_effect | {
        "client_metadata",
        "store",
        "stream_options",
    }
    """Nothing is stored, and each event says where it belongs."""

    input: StrictStr | list[dict[str, Any]]
    instructions: StrictStr | None = None
    max_output_tokens: Limit = Field(None, ge=1)
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: StrictStr | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = True
    include: list[StrictStr] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: StrictStr | None = None
    previous_response_id: StrictStr | None = None

    def refuse_unsupported(self) -> None:
        """Raise InputError if a known field asks for what this endpoint does not do."""
        if self.decoding.given().get("show_drafts"):
            raise InputError("decoding.show_drafts", "true", "only with /v1/chat/completions")
        if self.previous_response_id:
            allowed = "nothing is stored here: send the whole conversation as input"
            raise InputError("previous_response_id", "given", allowed)
        if self.truncation not in (None, "auto", "disabled"):
            raise InputError("truncation", repr(self.truncation), "allowed: auto, disabled")
        for name in self.include or ():
            if "logprobs" in name:
                raise InputError("include", repr(name), "log-probabilities: use chat completions")
        super().refuse_unsupported()

    def conversation(self, tools: ResponseTools) -> Conversation:
        """What the request says.

        Raises:
            InputError: an item is not as OpenAI defines it.
        """
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        messages += messages_of(self.input)
        if not messages:
            raise InputError("input", "empty", "must hold at least one message")
        form = (self.text or {}).get("format")
        constraint = of_response_format(form, "text.format")
        effort = (self.reasoning or {}).get("effort")
        return Conversation(
            messages=messages,
            choice=choose(
                tools.functions,
                self.tool_choice,
                parallel=self.parallel_tool_calls is not False,
            ),
            constraint=constraint,
            variables=template_variables(None, None, effort),
            prefill=False,
        )


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the endpoint."""
    guards = generation_guards(service)

    @app.post("/v1/responses", dependencies=guards)
    async def responses(body: ResponseBody, http: Request) -> Any:
        service.ignored_fields.note(body.unknown)
        body.refuse_unsupported()
        tools = read_tools(body.tools)
        response_id = new_id("resp_")
        with fields_named(_NAMES):
            turn = await begin_turn(
                service,
                body.conversation(tools),
                body.model,
                {**body.given_options(), "max_tokens": body.max_output_tokens},
                answer_id=response_id,
                headers=http.headers,
                stream=bool(body.stream),
            )
        request = turn.request
        response = ResponseState(response_id, service, body, turn, tools)
        settings, free = service.settings, partial(service.cancel, [request])
        timeout = settings.request_timeout
        headers = warning_header([*tools.warnings, *turn.form.warnings])
        if body.stream:
            events = response.events(request, timeout, settings.ping_interval)
            return EventStream(events, request.channel, free, headers=headers)
        complete = response.complete_object(request, timeout)
        return await send_object(http, complete, timeout, free, headers=headers)

    @app.post("/v1/responses/input_tokens", dependencies=guards)
    async def input_tokens(body: ResponseBody) -> dict[str, Any]:
        body.refuse_unsupported()
        with fields_named(_NAMES):
            prompt, _ = await service.prepare(body.conversation(read_tools(body.tools)))
        return {"object": "response.input_tokens", "input_tokens": len(prompt.tokens)}


@dataclass(slots=True)
class Item:
    """An output item while it is being made."""

    kind: str
    id: str
    index: int
    text: str = ""
    call_id: str = ""
    name: str = ""
    namespace: str | None = None

    def object(self, status: str) -> dict[str, Any]:
        """The item."""
        if self.kind == "function_call":
            space = {} if self.namespace is None else {"namespace": self.namespace}
            return {
                "type": "function_call",
                "id": self.id,
                "call_id": self.call_id,
                "name": self.name,
                **space,
                "arguments": self.text,
                "status": status,
            }
        content = [] if status == "in_progress" else [self.part()]
        if self.kind == "reasoning":
            return {
                "type": "reasoning",
                "id": self.id,
                "summary": [],
                "content": content,
                "encrypted_content": None,
                "status": status,
            }
        return {
            "type": "message",
            "id": self.id,
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def part(self, *, empty: bool = False) -> dict[str, Any]:
        """The one content part of a message or a thought."""
        text = "" if empty else self.text
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


@dataclass(slots=True)
class ResponseState:
    """One response: what its object and all its events share."""

    id: str
    service: Service
    body: ResponseBody
    turn: Turn
    tools: ResponseTools
    created: int = field(default_factory=lambda: int(time.time()))
    items: list[Item] = field(default_factory=list)
    events_sent: int = 0

    @property
    def model_name(self) -> str:
        """The name that the client asked for."""
        return self.body.model or self.service.name

    def response_object(self, status: str, **more: Any) -> dict[str, Any]:
        """The response object at any time."""
        body = self.body
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.model_name,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": body.reasoning or {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": body.text or {"format": {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "metadata": {},
            **more,
        }

    def finished_object(self, request: ActiveRequest, ended: Ended) -> dict[str, Any]:
        """The response object at its end."""
        counted = usage([request.sequence])
        status = "incomplete" if ended.cut_off else "completed"
        more: dict[str, Any] = {
            "output": [item.object(self._status(item, ended)) for item in self.items],
            "usage": {
                "input_tokens": counted["prompt_tokens"],
                "input_tokens_details": {
                    "cached_tokens": counted["prompt_tokens_details"]["cached_tokens"],
                    "cache_write_tokens": 0,
                },
                "output_tokens": counted["completion_tokens"],
                "output_tokens_details": {
                    "reasoning_tokens": counted["completion_tokens_details"]["reasoning_tokens"]
                },
                "total_tokens": counted["total_tokens"],
            },
            "metrics": decoding_metrics([request.sequence], self.turn.mode_reason),
        }
        if ended.cut_off:
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        return self.response_object(status, **more)

    async def complete_object(self, request: ActiveRequest, timeout: float) -> dict[str, Any]:
        """The finished response.

        Raises:
            TimeoutError: it is not finished in time.
        """
        ended = await whole(request, self.turn.form, timeout)
        reader = ended.reader
        if reader.thought:
            self._add("reasoning").text = reader.thought
        if reader.content or not (reader.calls or reader.thought):
            self._add("message").text = reader.content
        for call in reader.calls:
            self._add_call(call.id, call.name).text = call.arguments
        return self.finished_object(request, ended)

    async def events(
        self, request: ActiveRequest, timeout: float, ping_interval: float
    ) -> AsyncIterator[bytes]:
        """Typed server-sent events, numbered."""
        started = self.response_object("in_progress")
        yield self._typed("created", response=started)
        yield self._typed("in_progress", response=started)
        try:
            async for found in follow(request, self.turn.form, timeout, ping_interval):
                if found is None:
                    yield PING
                elif isinstance(found, Ended):
                    for event in self._last(request, found):
                        yield event
                else:
                    for event in self._next(found):
                        yield event
        except (TimeoutError, EngineFailedError) as error:
            failure = {"code": "server_error", "message": str(error) or too_late(timeout)}
            failed = {**started, "status": "failed", "error": failure}
            yield self._typed("failed", response=failed)

    def _next(self, part: Part) -> Iterator[bytes]:
        """The events of a part: perhaps a new item, and its text."""
        if isinstance(part, CallBegun):
            yield from self._close("completed")
            item = self._add_call(part.id, part.name)
            yield self._item_event("added", item, "in_progress")
            return
        kind = "reasoning" if isinstance(part, Thought) else "message"
        if isinstance(part, Arguments) or (self.items and self.items[-1].kind == kind):
            item = self.items[-1]
        else:
            yield from self._close("completed")
            item = self._add(kind)
            yield from self._opened(item)
        item.text += part.text
        if isinstance(part, Arguments):
            where = {"item_id": item.id, "output_index": item.index}
            yield self._typed("function_call_arguments.delta", **where, delta=part.text)
        elif isinstance(part, Content):
            yield self._typed("output_text.delta", **_place(item), delta=part.text, logprobs=[])
        else:
            yield self._typed("reasoning_text.delta", **_place(item), delta=part.text)

    def _last(self, request: ActiveRequest, ended: Ended) -> Iterator[bytes]:
        """The events at the end."""
        if not any(item.kind != "reasoning" for item in self.items):
            yield from self._close("completed")
            yield from self._opened(self._add("message"))
        yield from self._close("incomplete" if ended.cut_off else "completed")
        done = self.finished_object(request, ended)
        yield self._typed(done["status"], response=done)

    def _opened(self, item: Item) -> Iterator[bytes]:
        yield self._item_event("added", item, "in_progress")
        yield self._typed("content_part.added", **_place(item), part=item.part(empty=True))

    def _close(self, status: str) -> Iterator[bytes]:
        """The events that end the present item, if there is one."""
        if not self.items:
            return
        item = self.items[-1]
        if item.kind == "function_call":
            where = {"item_id": item.id, "output_index": item.index}
            name = "function_call_arguments.done"
            yield self._typed(name, **where, name=item.name, arguments=item.text)
        else:
            more = {"logprobs": []} if item.kind == "message" else {}
            name = "output_text.done" if item.kind == "message" else "reasoning_text.done"
            yield self._typed(name, **_place(item), text=item.text, **more)
            yield self._typed("content_part.done", **_place(item), part=item.part())
        yield self._item_event("done", item, status)

    def _status(self, item: Item, ended: Ended) -> str:
        cut = ended.cut_off and item is self.items[-1]
        return "incomplete" if cut else "completed"

    def _add(self, kind: str) -> Item:
        item = Item(kind, new_id(_PREFIXES[kind]), len(self.items))
        self.items.append(item)
        return item

    def _add_call(self, call_id: str, name: str) -> Item:
        item = self._add("function_call")
        item.call_id = call_id
        item.namespace, item.name = self.tools.original(name)
        return item

    def _item_event(self, what: str, item: Item, status: str) -> bytes:
        name = f"output_item.{what}"
        return self._typed(name, output_index=item.index, item=item.object(status))

    def _typed(self, kind: str, **fields: Any) -> bytes:
        data = {"type": f"response.{kind}", "sequence_number": self.events_sent, **fields}
        self.events_sent += 1
        return named_event(f"response.{kind}", data)


def _place(item: Item) -> dict[str, Any]:
    return {"item_id": item.id, "output_index": item.index, "content_index": 0}
