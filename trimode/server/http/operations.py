"""Routes for whoever runs the server: health, metrics, properties, the default mode."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, StrictStr

from trimode.config import MODES
from trimode.server.http.errors import ApiError
from trimode.server.http.guards import admin_guards, refuse_if_stopping
from trimode.server.service import Service
from trimode.version import __version__


class ModeChange(BaseModel):
    """Body of `PUT /admin/mode`."""

    mode: StrictStr


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes that decode nothing."""
    admin = admin_guards(service)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        refuse_if_stopping(service)
        if service.worker.stuck:
            raise ApiError(503, "the engine does not answer", code="stuck")
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/admin/mode", dependencies=admin)
    async def mode() -> dict[str, str]:
        return {"mode": service.defaults.mode}

    @app.put("/admin/mode", dependencies=admin)
    async def set_mode(body: ModeChange) -> dict[str, str]:
        service.defaults = service.defaults.updated({"mode": body.mode})
        return {"mode": service.defaults.mode}

    @app.get("/props")
    async def props() -> dict[str, Any]:
        config, defaults = service.model.config, service.defaults
        return {
            "model": service.name,
            "modes": list(MODES),
            "default_mode": defaults.mode,
            "block_length": defaults.block_length or config.block_length,
            "threshold": defaults.threshold,
            "max_tokens": defaults.max_tokens,
            "max_model_len": config.max_position_embeddings,
            "dtype": service.model.runner.format.name,
            "build": __version__,
        }
