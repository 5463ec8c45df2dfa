"""What a request must pass before its endpoint runs: an API key, and a server that goes on."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from trimode.server.http.errors import ApiError, ErrorForms, error_body
from trimode.server.service import Service

Check = Callable[[Request], Awaitable[None]]

_WRONG_KEY = "api key: missing or wrong; send it as Authorization: Bearer KEY"


class KeyCheck:
    """Refuses requests without a key before any of their body is read.

    All paths need one, except those of health and the files of the playground, which have no
    secrets: the page asks for the key.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], forms: ErrorForms) -> None:
        self.app, self.forms = app, forms
        self._known = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or self._open(scope) or self._fits(scope["headers"]):
            await self.app(scope, receive, send)
            return
        body = error_body(self.forms, scope["path"], 401, _WRONG_KEY, code="invalid_api_key")
        headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
        await JSONResponse(body, 401, headers)(scope, receive, send)

    def _open(self, scope: Scope) -> bool:
        path = scope["path"]
        asks = scope["method"] == "OPTIONS"  # a browser asks without a key whether it may
        return asks or path in ("/health", "/ready", "/") or path.startswith("/playground/")

    def _fits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        # Digests are compared in constant time, so that the time tells nothing about the keys.
        given = [_digest(key) for key in _keys(dict(headers))]
        matches = [hmac.compare_digest(key, one) for key in given for one in self._known]
        return any(matches)


def _keys(headers: dict[bytes, bytes]) -> list[bytes]:
    """The keys of a request. Anthropic's clients send one as `x-api-key`, or send both."""
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    found = [given.strip()] if scheme.lower() == b"bearer" else []
    return [*found, headers[b"x-api-key"].strip()] if b"x-api-key" in headers else found


def generation_guards(service: Service) -> list[Any]:
    """Dependencies of an endpoint that decodes: a server that is not stopping."""

    async def running() -> None:
        refuse_if_stopping(service)

    return [Depends(running)]


def refuse_if_stopping(service: Service) -> None:
    """Raise ApiError once the server has been told to stop."""
    if service.stopping:
        headers = {"Retry-After": "5"}
        raise ApiError(503, "the server is stopping", code="stopping", headers=headers)


def admin_guards(service: Service) -> list[Any]:
    """Dependencies of an endpoint that changes the server: it must have keys at all."""

    async def admin() -> None:
        if not service.settings.api_keys:
            raise ApiError(403, "admin: start the server with --api-key to allow this")

    return [Depends(admin)]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
