"""The application: routes over one engine."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trimode import __version__
from trimode.checkpoints import LoadedModel
from trimode.config import MODE_ALIASES, MODES, GenerationOptions
from trimode.engine import Engine, encode_prompt
from trimode.engine.score import score
from trimode.errors import InputError
from trimode.server import errors
from trimode.server.errors import ApiError, error_object
from trimode.server.frames import Answer, Echo, Kind
from trimode.server.metrics import ServerMetrics
from trimode.server.protocol import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ModeChange,
    generation_options,
    prediction_text,
)
from trimode.server.responses import Response as TextResponse
from trimode.server.responses import ResponseRequest
from trimode.server.responses import events as response_events
from trimode.server.responses import whole as whole_response
from trimode.server.settings import ServerSettings
from trimode.server.streaming import StreamSettings, events, whole
from trimode.server.tools import answer_form, told
from trimode.server.worker import Choice, EngineWorker
from trimode.server.worker import Request as EngineRequest

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
_PLAYGROUND = Path(__file__).with_name("playground")
_DISCONNECT_POLL = 0.1
"""Seconds between two looks whether the client is still there."""


class Server:
    """What the routes share."""

    def __init__(
        self, model: LoadedModel, settings: ServerSettings, thread: Executor | None = None
    ) -> None:
        self.model, self.settings = model, settings
        self.defaults = settings.defaults
        """Of requests; the mode may be changed at run time."""
        self.metrics = ServerMetrics()
        engine = Engine(model, max_sequences=settings.max_sequences)
        self.metrics.watch(engine)
        self.worker = EngineWorker(
            engine,
            max_waiting=settings.max_waiting,
            on_finish=self.metrics.finished,
            thread=thread,
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
        self, http: Request, answer: Answer, body: GenerationRequest, choices: list[Choice]
    ) -> Any:
        """Decode the choices and answer, streaming or not."""
        requests = await self.worker.submit(choices)
        timeout = self.settings.request_timeout
        if body.stream:
            asked = body.stream_options
            stream = StreamSettings(
                include_usage=asked is not None and asked.include_usage,
                continuous_usage=asked is not None and asked.continuous_usage_stats,
                show_drafts=body.decoding.show_drafts,
                draft_interval=1 / self.settings.draft_fps,
            )
            return self.streamed(http, requests, events(answer, requests, stream, timeout))
        return await self.at_once(http, requests, whole(answer, requests, timeout))

    def streamed(
        self, http: Request, requests: list[EngineRequest], lines: AsyncIterator[str]
    ) -> StreamingResponse:
        """Server-sent events until their end, or until the client has gone."""
        watcher = asyncio.create_task(_gone(http))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        following = _until_gone(lines, watcher, lambda: self._drop(requests))
        return StreamingResponse(following, media_type="text/event-stream", headers=headers)

    async def at_once(
        self, http: Request, requests: list[EngineRequest], answer: Coroutine[Any, Any, dict]
    ) -> Any:
        """The finished answer; nothing is left running if the client goes or time runs out."""
        watcher = asyncio.create_task(_gone(http))
        work = asyncio.create_task(answer)
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            return work.result()
        except TimeoutError:
            timeout = self.settings.request_timeout
            raise ApiError(408, f"not finished within {timeout:g} seconds") from None
        finally:
            watcher.cancel()
            work.cancel()
            self._drop(requests)

    def _drop(self, requests: list[EngineRequest]) -> None:
        for request in requests:
            self.worker.cancel(request)

    def new_answer(self, kind: Kind, name: str, **more: Any) -> Answer:
        """An answer with an id of its own."""
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        answer_id = f"{prefix}-{secrets.token_hex(12)}"
        return Answer(id=answer_id, kind=kind, model=self.model, name=name, **more)

    def chat_choices(self, body: ChatRequest) -> tuple[list[Choice], bool]:
        """What a chat request asks of the engine, and whether its answers may be calls."""
        if body.top_logprobs is not None and not body.logprobs:
            raise InputError("top_logprobs", str(body.top_logprobs), "needs logprobs: true")
        model = self.model
        form = answer_form(
            body.tools,
            body.tool_choice,
            body.response_format,
            parallel=body.parallel_tool_calls is not False,
        )
        predicted = prediction_text(body.prediction)
        asked = body.max_completion_tokens or body.max_tokens
        options = generation_options(
            body,
            self.settings,
            self.defaults,
            mode=self.mode_of(body.model),
            max_tokens=asked,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=form.grammar,
            prediction=tuple(model.tokenizer.encode(predicted, add_bos=False)),
        )
        template = model.chat_template.source if model.chat_template else ""
        messages = told(body.messages, form, template)
        tools = [*form.tools] or None
        prompt = tuple(encode_prompt(model, messages, tools=tools))
        return _fitted(prompt, options, model, asked), bool(form.tools)


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


def create_app(
    model: LoadedModel, settings: ServerSettings, *, thread: Executor | None = None
) -> FastAPI:
    """The ASGI application; its lifespan starts and stops the engine.

    `thread`: where the engine runs, best the one thread that loaded the model (see `EngineWorker`).
    """
    server = Server(model, settings, thread)

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
    _add_playground(app)
    return app


class _OwnFiles(StaticFiles):
    """Files that a browser may only combine with others of this server."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_PAGE_HEADERS)
        return response


def _add_playground(app: FastAPI) -> None:
    """The page at `/` and its files. It is plain files: what it shows comes over the API."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PLAYGROUND / "index.html", headers=_PAGE_HEADERS)

    app.mount("/playground", _OwnFiles(directory=_PLAYGROUND))


def _add_generation(app: FastAPI, server: Server) -> None:
    settings, model = server.settings, server.model
    keyed = [Depends(_key_check(settings))]

    @app.post("/v1/chat/completions", dependencies=keyed)
    async def chat_completions(body: ChatRequest, http: Request) -> Any:
        choices, may_call = server.chat_choices(body)
        answer = server.new_answer("chat", body.model, may_call=may_call)
        return await server.answer(http, answer, body, choices)

    @app.post("/v1/responses", dependencies=keyed)
    async def responses(body: ResponseRequest, http: Request) -> Any:
        choices, _ = server.chat_choices(body.as_chat())
        response = TextResponse(body)
        requests = await server.worker.submit(choices)
        timeout = settings.request_timeout
        if body.stream:
            lines = response_events(response, requests[0], timeout)
            return server.streamed(http, requests, lines)
        return await server.at_once(http, requests, whole_response(response, requests[0], timeout))

    @app.post("/v1/completions", dependencies=keyed)
    async def completions(body: CompletionRequest, http: Request) -> Any:
        nothing = body.max_tokens == 0 and bool(body.echo)
        options = generation_options(
            body,
            settings,
            server.defaults,
            mode=server.mode_of(body.model),
            max_tokens=None if nothing else body.max_tokens,
            logprobs=body.logprobs,
        )
        prompts = [tuple(encode_prompt(model, p, raw=True)) for p in _prompts(body.prompt)]
        answer = server.new_answer("text", body.model)
        if body.echo:
            places = [prompt for prompt in prompts for _ in options]
            answer.echoes = await _echoes(server, answer, places, body.logprobs)
        if nothing:
            return _only_echoes(answer, prompts)
        choices = []
        for prompt in prompts:
            choices += _fitted(prompt, options, model, body.max_tokens)
        return await server.answer(http, answer, body, choices)


async def _echoes(
    server: Server, answer: Answer, prompts: list[tuple[int, ...]], logprobs: int | None
) -> dict[int, Echo]:
    """What each choice begins with."""
    found = {}
    for index, prompt in enumerate(prompts):
        text = server.model.tokenizer.decode(list(prompt))
        scores = None
        if logprobs is not None:
            scored = await server.worker.call(lambda p=prompt: score(server.model, p, logprobs))
            scores = answer.logprobs(index, prompt, scored)
        found[index] = Echo(text, scores)
    return found


def _only_echoes(answer: Answer, prompts: list[tuple[int, ...]]) -> dict[str, Any]:
    """An answer that was asked for no new token."""
    count = sum(map(len, prompts))
    choices = [
        {"index": i, "text": echo.text, "logprobs": echo.logprobs, "finish_reason": "length"}
        for i, echo in answer.echoes.items()
    ]
    used = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
    return {**answer.shell(stream=False), "choices": choices, "usage": used}


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


def _admin_check(settings: ServerSettings) -> Any:
    """A dependency that lets nobody change a server that has no keys."""
    check = _key_check(settings)

    async def admin(http: Request) -> None:
        if not settings.api_keys:
            raise ApiError(403, "admin: start the server with --api-key to allow this")
        await check(http)

    return admin


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

    @app.get("/admin/mode", dependencies=[Depends(_admin_check(settings))])
    async def mode() -> dict[str, str]:
        return {"mode": server.defaults.mode}

    @app.put("/admin/mode", dependencies=[Depends(_admin_check(settings))])
    async def set_mode(body: ModeChange) -> dict[str, str]:
        server.defaults = server.defaults.updated({"mode": body.mode})
        return {"mode": server.defaults.mode}

    @app.get("/v1/models", dependencies=keyed)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", dependencies=keyed)
    async def one_model(name: str) -> dict[str, Any]:
        server.mode_of(name)
        return card

    @app.get("/props", dependencies=keyed)
    async def props() -> dict[str, Any]:
        config, defaults = server.model.config, server.defaults
        return {
            "model": settings.name,
            "modes": list(MODES),
            "default_mode": defaults.mode,
            "block_length": defaults.block_length or config.block_length,
            "threshold": defaults.threshold,
            "max_tokens": defaults.max_tokens,
            "max_model_len": config.max_position_embeddings,
            "dtype": server.model.transformer.kernel,
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
