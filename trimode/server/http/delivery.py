"""How an answer gets to its client: as server-sent events or as one JSON object.

Both free the answer's requests in the engine if the client hangs up.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from trimode.server.http.errors import ApiError
from trimode.server.runtime import Channel, ClientGoneError

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment, which readers of server-sent events skip."""


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event without a name."""
    return b"data: %b\n\n" % to_json(data)


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """A server-sent event with a name."""
    return b"event: %b\n%b" % (name.encode(), event(data))


class EventStream(StreamingResponse):
    """Server-sent events until their end, or until the client has gone.

    Starlette's own response waits for the client in a task group of its own. Here the channel
    that the events are made from carries that news too, which costs less.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        channel: Channel | None = None,
        free: Callable[[], None] = lambda: None,
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str = "text/event-stream",
    ) -> None:
        """Nothing is sent before the response is called.

        Args:
            events: ready to send.
            channel: the one that `events` reads from, if it reads from one.
            free: frees the engine's requests. It must not wait, so that it works in a task that
                is being cancelled.
            headers: further ones.
            media_type: of the events.
        """
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        super().__init__(events, media_type=media_type, headers=headers)
        self._channel, self._free = channel, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        del scope
        disconnect = asyncio.create_task(wait_for_disconnect(receive))
        if (channel := self._channel) is not None:
            disconnect.add_done_callback(lambda _: channel.put(0, ClientGoneError()))
        try:
            with suppress(ClientGoneError):
                await self.stream_response(send)
        finally:
            self._free()
            disconnect.cancel()


async def send_object(
    http: Request,
    complete: Coroutine[Any, Any, dict[str, Any]],
    timeout: float,
    free: Callable[[], None],
    *,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer as one JSON object.

    Args:
        http: the request.
        complete: makes the object; it raises TimeoutError after `timeout`.
        timeout: seconds, for the error message.
        free: as for `EventStream`.
        headers: further ones.

    Raises:
        ApiError: it took too long.
    """
    disconnect = asyncio.create_task(wait_for_disconnect(http.receive))
    work = asyncio.create_task(complete)
    try:
        await asyncio.wait((work, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)
        return JSONResponse(work.result(), headers=headers)
    except TimeoutError:
        raise ApiError(408, too_late(timeout)) from None
    finally:
        disconnect.cancel()
        work.cancel()
        free()


_MOST_WARNING = 1000


def warning_header(warnings: Iterable[str]) -> dict[str, str]:
    """The header that says what of a request is not enforced; none if all is."""
    text = "; ".join(warnings)
    if not text:
        return {}
    short = text if len(text) <= _MOST_WARNING else f"{text[:_MOST_WARNING]}..."
    return {"X-Trimode-Warning": short.encode("unicode_escape").decode()}


def too_late(timeout: float) -> str:
    """The message of an answer that was not finished in time."""
    return f"not finished within {timeout:g} seconds"


async def wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has hung up. Its request must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
