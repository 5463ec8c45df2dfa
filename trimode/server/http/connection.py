"""Limits on a connection before its request has been read: size and time of headers and body.

uvicorn's protocol for httptools has none: one endless header would stop the event loop, and idle
connections would take all file descriptors.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEADER_BYTES = 64 * 1024
"""Bytes of a request line with its headers."""
HEADER_SECONDS = 20.0
"""Time for a client to send them, from the connection on."""
BODY_SECONDS = 60.0
"""Time for a client to send a body, from the end of its headers on."""

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class LimitedConnection(HttpToolsProtocol):
    """uvicorn's protocol with limits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._reading_headers = True
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        super().connection_made(transport)
        self._expect(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The client has sent something."""
        if self._reading_headers:
            self._header_bytes += len(data)
            # What comes with the end of the headers may be body.
            if self._header_bytes > MOST_HEADER_BYTES and not self._ends_soon(data):
                self.transport.write(_TOO_LARGE)
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._reading_headers = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers of a request have been read."""
        self._reading_headers, self._header_bytes = False, 0
        self._expect(BODY_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body of a request has been read."""
        self._reading_headers = True
        self._expect(None)
        super().on_message_complete()

    def _ends_soon(self, data: bytes) -> bool:
        """Whether the headers end in this piece, within the limit."""
        end = data.find(b"\r\n\r\n")
        return end >= 0 and self._header_bytes - len(data) + end <= MOST_HEADER_BYTES

    def _expect(self, seconds: float | None) -> None:
        """Close the connection unless it goes on within a time; None: it may take any."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None
        if seconds is not None:
            self._deadline = self.loop.call_later(seconds, self.transport.close)
