"""The ASGI application: routes over one engine, and what stands around them."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from trimode import __version__
from trimode.checkpoints import LoadedModel
from trimode.decoding import CostCurve
from trimode.server import errors, generation, operations, pages
from trimode.server.body_limit import BodyLimit
from trimode.server.service import Service
from trimode.server.settings import ServerSettings


def create_app(
    model: LoadedModel,
    settings: ServerSettings,
    *,
    thread: Executor | None = None,
    costs: CostCurve | None = None,
) -> FastAPI:
    """The ASGI application; its lifespan starts and stops the engine.

    Args:
        model: what to serve.
        settings: how.
        thread: where the engine runs, best the one that loaded the model (see `EngineWorker`).
        costs: of a pass; measured for the first request in mode `auto` by default.
    """
    service = Service(model, settings, thread=thread, costs=costs)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await asyncio.to_thread(service.stop)

    app = FastAPI(title="trimode", version=__version__, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    if settings.cors_origins:
        origins = [*settings.cors_origins]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
        )
    errors.install(app)
    operations.add_routes(app, service)
    generation.add_routes(app, service)
    pages.add_routes(app)
    return app
