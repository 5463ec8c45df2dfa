"""The playground at `/`: static files. The page gets all it shows from the API."""

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_PLAYGROUND = Path(__file__).parents[1] / "playground"


class _OwnFiles(StaticFiles):
    """Files that a browser may combine with files of this server only."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_HEADERS)
        return response


def add_routes(app: FastAPI) -> None:
    """Add the page and its files."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PLAYGROUND / "index.html", headers=_HEADERS)

    app.mount("/playground", _OwnFiles(directory=_PLAYGROUND))
