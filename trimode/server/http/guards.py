"""What a request must pass before its endpoint runs: an API key, and a server that goes on."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, Request

from trimode.server.http.errors import ApiError
from trimode.server.service import Service

Check = Callable[[Request], Awaitable[None]]


def generation_guards(service: Service) -> list[Any]:
    """Dependencies of an endpoint that decodes: a key, and a server that is not stopping."""

    async def running() -> None:
        refuse_if_stopping(service)

    return [*key_guards(service), Depends(running)]


def key_guards(service: Service) -> list[Any]:
    """Dependencies of an endpoint that needs a key."""
    return [Depends(key_check(service.settings.api_keys))]


def refuse_if_stopping(service: Service) -> None:
    """Raise ApiError once the server has been told to stop."""
    if service.stopping:
        headers = {"Retry-After": "5"}
        raise ApiError(503, "the server is stopping", code="stopping", headers=headers)


def key_check(keys: tuple[str, ...]) -> Check:
    """A dependency that lets a request pass if it has one of the keys, or if there are none."""
    known = [_digest(key) for key in keys]

    async def check(http: Request) -> None:
        if not known:
            return
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        if "x-api-key" in http.headers:  # Anthropic's clients send it so
            scheme, given = "bearer", http.headers["x-api-key"]
        digest = _digest(given.strip())
        # Digests are compared in constant time, so that the time tells nothing about the keys.
        matches = [hmac.compare_digest(digest, one) for one in known]
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(
                401,
                "api key: missing or wrong; send it as Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    return check


def admin_check(keys: tuple[str, ...]) -> Check:
    """As `key_check`, but if the server has no keys, nobody passes."""
    check = key_check(keys)

    async def admin(http: Request) -> None:
        if not keys:
            raise ApiError(403, "admin: start the server with --api-key to allow this")
        await check(http)

    return admin


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
