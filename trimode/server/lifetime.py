"""The HTTP server as a process: it starts, and stops without cutting off what it has begun."""

import asyncio
import logging
import socket

import uvicorn
from fastapi import FastAPI

from trimode.server.service import Service
from trimode.server.worker import StoppedError

logger = logging.getLogger(__name__)

_POLL = 0.05
_CLOSING_SECONDS = 5
"""For connections to close once nothing is decoded any more."""


class HttpServer(uvicorn.Server):
    """Told to stop, it finishes what runs and refuses what is new with 503, for a while.

    uvicorn closes its port at once; a load balancer would send requests into the void until its
    next check.
    """

    def __init__(
        self, app: FastAPI, *, host: str = "127.0.0.1", port: int = 0, shutdown_timeout: float = 30
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_CLOSING_SECONDS,
        )
        super().__init__(config)
        self.service: Service = app.state.service
        self.shutdown_timeout = shutdown_timeout

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then close."""
        self.service.stopping = True
        worker = self.service.worker
        try:
            async with asyncio.timeout(self.shutdown_timeout):
                while worker.busy and not self.force_exit:
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            logger.warning("requests cut off", extra={"facts": {"after": self.shutdown_timeout}})
        worker.fail_all(StoppedError("the server is stopping"))
        await super().shutdown(sockets)
