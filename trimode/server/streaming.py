"""From requests in the engine to server-sent events, or to one whole answer."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from trimode.decoding import Committed, Drafted
from trimode.server.errors import error_object
from trimode.server.frames import Answer, finish, metrics, usage
from trimode.server.steps import ClientGoneError, Step
from trimode.server.tools import calls_in, may_be_call
from trimode.server.worker import EngineFailedError, Request

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment: readers of server-sent events pass over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """What a streaming request asked for."""

    include_usage: bool
    continuous_usage: bool
    show_drafts: bool
    draft_interval: float
    """Seconds between two draft frames of a choice, at least."""
    ping_interval: float
    """Seconds without an event until a comment is sent."""


async def following(
    requests: list[Request], timeout: float, ping_interval: float
) -> AsyncIterator[tuple[int, Step] | None]:
    """Steps of an answer's requests as they come, each with its choice's number.

    None where `ping_interval` seconds brought nothing.

    Raises:
        TimeoutError: they did not end in time.
        EngineFailedError: a pass failed.
        ClientGoneError: nobody reads the answer any more.
    """
    channel, open_choices = requests[0].channel, len(requests)
    with channel.watched(timeout, ping_interval):
        while open_choices:
            found = await channel.get()
            if found is not None:
                open_choices -= found[1].finish_reason is not None
            yield found


async def to_the_end(requests: list[Request], timeout: float) -> AsyncIterator[tuple[int, Step]]:
    """The same for an answer that goes out as a whole."""
    async for found in following(requests, timeout, math.inf):
        if found is not None:
            yield found


async def whole(answer: Answer, requests: list[Request], timeout: float) -> dict[str, Any]:
    """The answer as one object."""
    texts = ["" for _ in requests]
    scores: list[list[dict]] = [[] for _ in requests]
    reasons: list[str] = ["" for _ in requests]
    async for index, step in to_the_end(requests, timeout):
        event = step.update.event
        texts[index] += step.update.text
        if isinstance(event, Committed) and event.logprobs:
            scores[index].append(answer.logprobs(index, event.tokens, event.logprobs))
        if step.finish_reason is not None:
            reasons[index] = finish(step.finish_reason)
    choices = []
    for i, text in enumerate(texts):
        choice: dict[str, Any] = {"index": i, "finish_reason": reasons[i]}
        choice["logprobs"] = _joined(scores[i]) if scores[i] else None
        if answer.kind == "chat":
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            calls = calls_in(text) if answer.may_call else []
            if calls:
                choice["message"] |= {"content": None, "tool_calls": calls}
                choice["finish_reason"] = "tool_calls"
        else:
            echo = answer.echoes.get(i)
            choice["text"] = (echo.text if echo else "") + text
            if echo and echo.logprobs:
                choice["logprobs"] = _joined([echo.logprobs, *scores[i]])
        choices.append(choice)
    sequences = [request.sequence for request in requests]
    return {
        **answer.shell(stream=False),
        "choices": choices,
        "usage": usage(sequences),
        "metrics": metrics(sequences, answer.mode_reason),
    }


def _joined(parts: list[dict]) -> dict[str, Any]:
    """Log-probabilities of several commits as one object."""
    lists = {
        name: [item for part in parts for item in part[name]]
        for name, value in parts[0].items()
        if isinstance(value, list)
    }
    return {**parts[0], **lists}


async def events(
    answer: Answer, requests: list[Request], settings: StreamSettings, timeout: float
) -> AsyncIterator[bytes]:
    """Server-sent events; a failure in the middle is an error object as the last of them."""
    try:
        async for event in _events(answer, requests, settings, timeout):
            yield event
    except TimeoutError:
        yield line(error_object(408, f"not finished within {timeout:g} seconds"))
    except EngineFailedError as error:
        yield line(error_object(error.status, str(error)))


async def _events(
    answer: Answer, requests: list[Request], settings: StreamSettings, timeout: float
) -> AsyncIterator[bytes]:
    sequences = [request.sequence for request in requests]

    def sent(chunk: dict[str, Any]) -> bytes:
        if settings.continuous_usage:
            tokens = sum(place.tokens for place in answer.places.values())
            chunk["usage"] = usage(sequences, tokens)
        elif settings.include_usage:
            chunk["usage"] = None
        return line(chunk)

    if answer.kind == "chat":
        for index in range(len(requests)):
            yield sent(answer.chunk(index, role=True))
    for index, echo in answer.echoes.items():
        yield sent(answer.chunk(index, echo.text, logprobs=echo.logprobs))
    held: list[str | None] = ["" for _ in requests]
    """Text that may yet turn out to be a call; None once an answer is known to be none."""
    async for found in _worth_showing(requests, settings, timeout):
        if found is None:
            yield PING
            continue
        index, step = found
        step, held[index], calls = _held_back(answer, step, held[index])
        for chunk in _chunks(answer, index, step, calls, show_drafts=settings.show_drafts):
            yield sent(chunk)
    if settings.include_usage:
        yield line(answer.usage_chunk(sequences))
    yield DONE


async def _worth_showing(
    requests: list[Request], settings: StreamSettings, timeout: float
) -> AsyncIterator[tuple[int, Step] | None]:
    """As `following`, without drafts that come too soon or that a newer step has overtaken."""
    shown = [-math.inf for _ in requests]
    async for found in following(requests, timeout, settings.ping_interval):
        if found is not None and isinstance(found[1].update.event, Drafted):
            index, now = found[0], time.monotonic()
            late = requests[index].channel.overtaken(index)
            if late or now - shown[index] < settings.draft_interval:
                continue
            shown[index] = now
        yield found


def _chunks(
    answer: Answer, index: int, step: Step, calls: list[dict[str, Any]], *, show_drafts: bool
) -> Iterator[dict[str, Any]]:
    """What one step sends: its text or draft, calls, and at the end the reason."""
    chunk = answer.step(index, step, show_drafts=show_drafts)
    if chunk is not None:
        yield chunk
    yield from answer.call_chunks(index, calls)
    if step.finish_reason is not None:
        reason = "tool_calls" if calls else finish(step.finish_reason)
        yield answer.chunk(index, finish_reason=reason)


def _held_back(
    answer: Answer, step: Step, held: str | None
) -> tuple[Step, str | None, list[dict[str, Any]]]:
    """A step without text that may belong to a call, that text, and at the end the calls.

    Only an answer that begins with a call has any, so text that has been passed on never waits.
    """
    if not answer.may_call or held is None or not isinstance(step.update.event, Committed):
        return step, held, []
    text = held + step.update.text
    if may_be_call(text):
        if step.finish_reason is None:
            return replace(step, update=replace(step.update, text="")), text, []
        calls = calls_in(text)
        if calls:
            return replace(step, update=replace(step.update, text="")), "", calls
    return replace(step, update=replace(step.update, text=text)), None, []


def line(data: dict[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return b"data: %b\n\n" % to_json(data)


class EventStream(StreamingResponse):
    """An answer as server-sent events until their end, or until the client has gone.

    Starlette's own response listens for the client in a task group of its own; here the channel
    that the lines read from brings that news too.
    """

    def __init__(
        self, lines: AsyncIterator[bytes], requests: list[Request], drop: Callable[[], None]
    ) -> None:
        """Nothing is sent before it is called.

        Args:
            lines: server-sent events made of the requests' steps.
            requests: of the answer.
            drop: frees the requests; it does not wait, so it works in a task that is cancelled.
        """
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(lines, media_type="text/event-stream", headers=headers)
        self._requests, self._drop = requests, drop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        del scope
        watcher = asyncio.create_task(gone(receive))
        if self._requests:
            channel = self._requests[0].channel
            watcher.add_done_callback(lambda _: channel.put(0, ClientGoneError()))
        try:
            with suppress(ClientGoneError):
                await self.stream_response(send)
        finally:
            self._drop()
            watcher.cancel()


async def gone(receive: Receive) -> None:
    """Return once the client has hung up; its request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
