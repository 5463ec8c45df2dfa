"""Routes for those who run the server: health, metrics, models, the default mode."""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.responses import PlainTextResponse

from trimode import __version__
from trimode.config import MODES
from trimode.server.keys import admin_check, key_check
from trimode.server.protocol import ModeChange
from trimode.server.service import Service


def add_routes(app: FastAPI, service: Service) -> None:
    """Everything but generation."""
    settings = service.settings
    keyed = [Depends(key_check(settings.api_keys))]
    admin = [Depends(admin_check(settings.api_keys))]
    card = {
        "id": settings.name,
        "object": "model",
        "created": service.started,
        "owned_by": "trimode",
        "max_model_len": service.model.config.max_position_embeddings,
    }

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        service.refuse_if_stopping()
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics", dependencies=keyed)
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/admin/mode", dependencies=admin)
    async def mode() -> dict[str, str]:
        return {"mode": service.defaults.mode}

    @app.put("/admin/mode", dependencies=admin)
    async def set_mode(body: ModeChange) -> dict[str, str]:
        service.defaults = service.defaults.updated({"mode": body.mode})
        return {"mode": service.defaults.mode}

    @app.get("/v1/models", dependencies=keyed)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    async def one_model(name: str) -> dict[str, Any]:
        service.mode_of(name)
        return card

    @app.get("/props", dependencies=keyed)
    async def props() -> dict[str, Any]:
        config, defaults = service.model.config, service.defaults
        return {
            "model": settings.name,
            "modes": list(MODES),
            "default_mode": defaults.mode,
            "block_length": defaults.block_length or config.block_length,
            "threshold": defaults.threshold,
            "max_tokens": defaults.max_tokens,
            "max_model_len": config.max_position_embeddings,
            "dtype": service.model.runner.format.name,
            "build": __version__,
        }
