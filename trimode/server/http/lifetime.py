"""The HTTP server: it listens, and stops without cutting off what it has begun."""

import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trimode.server.http.connection import LimitedConnection
from trimode.server.service import Service

_CLOSING_SECONDS = 5
"""Seconds for connections to close once nothing is decoded any more."""


class HttpServer(uvicorn.Server):
    """Told to stop, it drains its service before it closes its port.

    uvicorn closes the port at once, so until its next check a load balancer would send requests
    into the void. This server answers them with 503.
    """

    def __init__(
        self, app: FastAPI, service: Service, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        """Take the address: clients may connect from now on and are answered once it runs.

        Args:
            app: the application.
            service: what the application serves.
            host: address to bind.
            port: 0 is any free port.
        """
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            http=LimitedConnection,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        super().__init__(config)
        self.service = service
        self._socket = config.bind_socket()
        self._socket.listen()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        """Where it listens."""

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop."""
        try:
            super().run(sockets or [self._socket])
        finally:  # uvicorn repeats the signals that it has caught
            if self.force_exit:  # and has left out the end of the application's life
                self.service.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal tells the server to stop, a second one to stop at once."""
        self.force_exit = self.should_exit
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        await self.service.drain(cut_short=lambda: self.force_exit)
        await super().shutdown(sockets)
