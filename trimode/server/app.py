"""The ASGI application: the endpoints over one service, and what surrounds them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from trimode.server import anthropic, ollama, tokens
from trimode.server.http import errors, operations, pages
from trimode.server.http.always_json import AlwaysJson
from trimode.server.http.body_limit import BodyLimit
from trimode.server.http.guards import KeyCheck
from trimode.server.openai import chat, completions, models, responses
from trimode.server.service import Service
from trimode.version import __version__

_ERROR_FORMS: errors.ErrorForms = {
    anthropic.PATH: anthropic.error_object,
    anthropic.PATH.removeprefix("/v1"): anthropic.error_object,
    ollama.PATHS: ollama.error_object,
}


def create_app(service: Service) -> FastAPI:
    """The ASGI application; its lifespan starts and stops the service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await asyncio.to_thread(service.stop)

    settings = service.settings
    app = FastAPI(
        title="trimode",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # pages that load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, limit=service.max_body_bytes, forms=_ERROR_FORMS)
    app.add_middleware(AlwaysJson, paths=ollama.PATHS)
    if settings.api_keys:
        app.add_middleware(KeyCheck, keys=settings.api_keys, forms=_ERROR_FORMS)
    if settings.cors_origins:
        origins = [*settings.cors_origins]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    errors.install(app, _ERROR_FORMS)
    operations.add_routes(app, service)
    models.add_routes(app, service)
    chat.add_routes(app, service)
    responses.add_routes(app, service)
    completions.add_routes(app, service)
    anthropic.add_routes(app, service)
    ollama.add_routes(app, service)
    tokens.add_routes(app, service)
    _without_version(app)
    pages.add_routes(app)
    return app


def _without_version(app: FastAPI) -> None:
    """Let every `/v1/` route answer without `/v1` too: some base URLs are given so."""
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        if route.path.startswith("/v1/"):
            app.add_api_route(
                route.path.removeprefix("/v1"),
                route.endpoint,
                methods=[*(route.methods or ())],
                dependencies=route.dependencies,
                include_in_schema=False,
            )
