"""Routes for whoever runs the server: health, metrics, properties, the default mode."""

from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, StrictStr

from trimode.config import MODES, Mode
from trimode.decoding import MODE_SPECS, inherited
from trimode.engine import settings_in_force
from trimode.errors import InputError
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
        if (fault := service.worker.fault) is not None:
            raise ApiError(503, fault, code="stuck")
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
        service.set_mode(body.mode)
        return {"mode": service.defaults.mode}

    @app.get("/props")
    async def props() -> dict[str, Any]:
        defaults = service.defaults
        return {
            "model": service.name,
            "modes": {mode: _mode_facts(service, mode) for mode in MODES},
            "default_mode": defaults.mode,
            "temperature": defaults.temperature,
            "max_tokens": defaults.max_tokens,
            "modalities": {"vision": service.model.vision_or_none is not None, "audio": False},
            "max_images": service.settings.max_images,
            "max_model_len": service.model.config.max_position_embeddings,
            "dtype": service.model.runner.format.name,
            "build": __version__,
        }


def _mode_facts(service: Service, mode: Mode) -> dict[str, Any]:
    """What a client that offers a mode needs to know of it.

    `reads` are the decoding options that a request may give, `defaults` what applies to those that
    it leaves out, and `unavailable` why the mode cannot run on this model, or null.
    """
    spec, options = MODE_SPECS[mode], inherited(service.defaults, mode)
    facts = {"summary": spec.summary, "lossless": spec.lossless, "reads": sorted(spec.reads)}
    try:
        context = service.worker.engine.preview(options)
    except InputError as error:
        return {**facts, "defaults": {}, "unavailable": str(error)}
    applied = settings_in_force(options, context)
    return {
        **facts,
        "defaults": {name: value for name, value in applied.items() if name in spec.reads},
        "unavailable": None,
    }
