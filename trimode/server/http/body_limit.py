"""A limit on the size of request bodies."""

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimode.server.http.errors import ErrorForms, error_body


class BodyLimit:
    """Refuses larger bodies with 413, by their length header or while they come in."""

    def __init__(self, app: ASGIApp, limit: int, forms: ErrorForms) -> None:
        self.app, self.limit, self.forms = app, limit, forms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            await self._refuse(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"body: above {self.limit} bytes")
            return message

        await self.app(scope, counted, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"body: above {self.limit} bytes"
        body = error_body(self.forms, scope["path"], 413, message)
        await JSONResponse(body, 413)(scope, receive, send)
