"""API keys."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request

from trimode.server.errors import ApiError

Check = Callable[[Request], Awaitable[None]]


def key_check(keys: tuple[str, ...]) -> Check:
    """A dependency that lets a request pass if it brings one of the keys, or if there are none."""
    known = [_digest(key) for key in keys]

    async def check(http: Request) -> None:
        if not known:
            return
        scheme, _, given = http.headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip())
        # Digests, each compared in constant time: the time tells neither a key nor its length.
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
    """As `key_check`, but a server without keys lets nobody pass."""
    check = key_check(keys)

    async def admin(http: Request) -> None:
        if not keys:
            raise ApiError(403, "admin: start the server with --api-key to allow this")
        await check(http)

    return admin


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
