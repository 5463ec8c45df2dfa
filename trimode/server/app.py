"""The application: routes over one engine."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimode import __version__
from trimode.checkpoints import LoadedModel
from trimode.config import MODE_ALIASES, MODES, GenerationOptions
from trimode.engine import Engine, encode_prompt
from trimode.errors import InputError
from trimode.server import errors
from trimode.server.errors import ApiError, error_object
from trimode.server.frames import Answer, Kind
from trimode.server.metrics import ServerMetrics
from trimode.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    generation_options,
)
from trimode.server.settings import ServerSettings
from trimode.server.streaming import StreamSettings, events, whole
from trimode.server.worker import Choice, EngineWorker

_DISCONNECT_POLL = 0.1
"""Seconds between two looks whether the client is still there."""


class Server:
    """What the routes share."""

    def __init__(self, model: LoadedModel, settings: ServerSettings) -> None:
        self.model, self.settings = model, settings
        self.metrics = ServerMetrics()
        engine = Engine(model, max_sequences=settings.max_sequences)
        self.metrics.watch(engine)
        self.worker = EngineWorker(
            engine, max_waiting=settings.max_waiting, on_finish=self.metrics.finished
        )
        self.started = int(time.time())

    def mode_of(self, name: str) -> str | None:
        """The mode that a model name asks for by its suffix.

        Raises:
            ApiError: it is not our model.
        """
        base, _, suffix = name.rpartition(":")
        if name == self.settings.name:
            return None
        if base == self.settings.name and MODE_ALIASES.get(suffix, suffix) in MODES:
            return suffix
        raise ApiError(
            404,
            f"model: {name!r} is not served here; use {self.settings.name!r}, with or without a "
            f"mode as suffix ({self.settings.name}:linear)",
            param="model",
            code="model_not_found",
        )

    async def answer(
        self, http: Request, kind: Kind, body: GenerationRequest, choices: list[Choice]
    ) -> Any:
        """Decode the choices and answer, streaming or not."""
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        answer = Answer(
            id=f"{prefix}-{secrets.token_hex(12)}", kind=kind, model=self.model, name=body.model
        )
        requests = await self.worker.submit(choices)

        def drop() -> None:
            for request in requests:
                self.worker.cancel(request)

        watcher = asyncio.create_task(_gone(http))
        timeout = self.settings.request_timeout
        if body.stream:
            asked = body.stream_options
            stream = StreamSettings(
                include_usage=asked is not None and asked.include_usage,
                continuous_usage=asked is not None and asked.continuous_usage_stats,
                show_drafts=body.decoding.show_drafts,
                draft_interval=1 / self.settings.draft_fps,
            )
            lines = events(answer, requests, stream, timeout)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(
                _until_gone(lines, watcher, drop), media_type="text/event-stream", headers=headers
            )
        work = asyncio.create_task(whole(answer, requests, timeout))
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            return work.result()
        except TimeoutError:
            raise ApiError(408, f"not finished within {timeout:g} seconds") from None
        finally:
            watcher.cancel()
            work.cancel()
            drop()


async def _gone(http: Request) -> None:
    """Return once the client has hung up."""
    while not await http.is_disconnected():
        await asyncio.sleep(_DISCONNECT_POLL)


async def _until_gone(
    lines: AsyncIterator[str], watcher: asyncio.Task, drop: Callable[[], None]
) -> AsyncIterator[str]:
    """The lines until their end, or until the client has gone.

    `drop` frees the requests; it does not wait, so it works in a task that is being cancelled.
    """
    following = None
    try:
        while True:
            following = asyncio.ensure_future(anext(lines))
            await asyncio.wait((following, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                line = following.result()
            except StopAsyncIteration:
                return
            yield line
    finally:
        drop()
        watcher.cancel()
        if following is not None:
            following.cancel()


def create_app(model: LoadedModel, settings: ServerSettings) -> FastAPI:
    """The ASGI application; its lifespan starts and stops the engine's thread."""
    server = Server(model, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.worker.start()
        yield
        await asyncio.to_thread(server.worker.stop)

    app = FastAPI(title="trimode", version=__version__, lifespan=lifespan)
    app.state.server = server
    app.add_middleware(BodyLimit, limit=settings.max_body_bytes)
    errors.install(app)
    _add_operations(app, server)
    _add_generation(app, server)
    return app


def _add_generation(app: FastAPI, server: Server) -> None:
    settings, model = server.settings, server.model

    @app.post("/v1/chat/completions", dependencies=[Depends(_key_check(settings))])
    async def chat_completions(body: ChatRequest, http: Request) -> Any:
        if body.top_logprobs is not None and not body.logprobs:
            raise InputError("top_logprobs", str(body.top_logprobs), "needs logprobs: true")
        options = generation_options(
            body,
            settings,
            mode=server.mode_of(body.model),
            max_tokens=body.max_completion_tokens or body.max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        prompt = tuple(encode_prompt(model, body.messages))
        choices = _fitted(prompt, options, model, body.max_completion_tokens or body.max_tokens)
        return await server.answer(http, "chat", body, choices)

    @app.post("/v1/completions", dependencies=[Depends(_key_check(settings))])
    async def completions(body: CompletionRequest, http: Request) -> Any:
        if body.echo:
            raise InputError("echo", "true", "this server does not support it yet; leave it out")
        options = generation_options(
            body,
            settings,
            mode=server.mode_of(body.model),
            max_tokens=body.max_tokens,
            logprobs=body.logprobs,
        )
        choices = []
        for prompt in _prompts(body.prompt):
            ids = tuple(encode_prompt(model, prompt, raw=True))
            choices += _fitted(ids, options, model, body.max_tokens)
        return await server.answer(http, "text", body, choices)


def _fitted(
    prompt: tuple[int, ...],
    options: list[GenerationOptions],
    model: LoadedModel,
    asked: int | None,
) -> list[Choice]:
    """Choices over a prompt; one that names no limit on tokens gets what the context leaves."""
    room = model.config.max_position_embeddings - len(prompt)
    if asked is None and room > 0:
        options = [o.updated({"max_tokens": min(o.max_tokens, room)}) for o in options]
    return [(prompt, one) for one in options]


def _prompts(prompt: str | list) -> list[str | list[int]]:
    """One prompt or a list of them, as texts or token ids."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    if not prompt:
        raise InputError("prompt", "an empty list", "must hold at least one prompt")
    return prompt


def _key_check(settings: ServerSettings) -> Any:
    """A dependency that lets a request pass if it brings one of the keys."""

    async def check(http: Request) -> None:
        if not settings.api_keys:
            return
        given = http.headers.get("authorization", "").removeprefix("Bearer ").encode()
        # Every key is compared, each in constant time: the time tells nothing of a key.
        matches = [hmac.compare_digest(given, key.encode()) for key in settings.api_keys]
        if not any(matches):
            raise ApiError(401, "api key: missing or wrong; send it as Authorization: Bearer KEY")

    return check


def _add_operations(app: FastAPI, server: Server) -> None:
    settings = server.settings
    keyed = [Depends(_key_check(settings))]
    card = {
        "id": settings.name,
        "object": "model",
        "created": server.started,
        "owned_by": "trimode",
        "max_model_len": server.model.config.max_position_embeddings,
    }

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/metrics", dependencies=keyed)
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(server.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models", dependencies=keyed)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    async def one_model(name: str) -> dict[str, Any]:
        server.mode_of(name)
        return card

    @app.get("/props", dependencies=keyed)
    async def props() -> dict[str, Any]:
        config, defaults = server.model.config, settings.defaults
        return {
            "model": settings.name,
            "modes": list(MODES),
            "default_mode": defaults.mode,
            "block_length": defaults.block_length or config.block_length,
            "threshold": defaults.threshold,
            "max_tokens": defaults.max_tokens,
            "max_model_len": config.max_position_embeddings,
            "build": __version__,
        }


class BodyLimit:
    """Refuses bodies above a size with 413, by their header or as they come in."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.limit:
            await self._refuse(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, f"body: above {self.limit} bytes")
            return message

        await self.app(scope, counted, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"body: above {self.limit} bytes"
        await JSONResponse(error_object(413, message), 413)(scope, receive, send)
