"""Bodies that are JSON whatever their header says: Ollama's users send them with plain curl."""

from starlette.types import ASGIApp, Receive, Scope, Send

_HEADER = (b"content-type", b"application/json")


class AlwaysJson:
    """Names the body of requests to some paths as JSON, unless a web page sends them.

    A browser lets any page post a body of another type without asking, so such requests keep it
    and are refused.
    """

    def __init__(self, app: ASGIApp, paths: str) -> None:
        self.app, self.paths = app, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and scope["path"].startswith(self.paths):
            others = [pair for pair in scope["headers"] if pair[0] != _HEADER[0]]
            if all(name != b"origin" for name, _ in others):
                scope = {**scope, "headers": [*others, _HEADER]}
        await self.app(scope, receive, send)
