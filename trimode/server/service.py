"""What the routes share: the model, its engine's thread, and how an answer gets to its client."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from trimode.checkpoints import LoadedModel
from trimode.config import MODE_ALIASES, MODES, GenerationOptions
from trimode.decoding import CostCurve
from trimode.engine import Engine
from trimode.server.errors import ApiError, fields_named
from trimode.server.fingerprint import fingerprint
from trimode.server.frames import Answer, Kind, ModeReason
from trimode.server.logs import RequestLog
from trimode.server.metrics import ServerMetrics
from trimode.server.protocol import Body, GenerationRequest
from trimode.server.settings import ServerSettings
from trimode.server.streaming import EventStream, StreamSettings, events, gone, whole
from trimode.server.telemetry import Trace, Tracing
from trimode.server.worker import Choice, EndReason, EngineWorker
from trimode.server.worker import Request as EngineRequest

logger = logging.getLogger(__name__)

_MOST_UNKNOWN = 100
"""Names of unknown fields that are remembered, so that each is logged once."""


class Service:
    """One model and its engine, as the routes see them."""

    def __init__(
        self,
        model: LoadedModel,
        settings: ServerSettings,
        *,
        thread: Executor | None = None,
        costs: CostCurve | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.defaults = settings.defaults
        """Of requests; the mode may be changed at run time."""
        self.metrics = ServerMetrics(settings.name)
        self.log = RequestLog(model.tokenizer, prompts=settings.log_prompts)
        engine = Engine(model, max_sequences=settings.max_sequences, costs=costs)
        self.metrics.watch(engine)
        self.worker = EngineWorker(engine, max_waiting=settings.max_waiting, thread=thread)
        endpoint = settings.otlp_traces_endpoint
        self.tracing = None if endpoint is None else Tracing(endpoint, settings.name)
        self.started = int(time.time())
        self.stopping = False
        """Whether new requests are refused."""
        self.fingerprint = ""
        self._unknown: set[str] = set()

    async def start(self) -> None:
        """Start the engine's thread."""
        self.worker.start()
        self.fingerprint = await self.worker.call(lambda: fingerprint(self.model))

    def stop(self) -> None:
        """End what runs, then the engine's loop; then send the last spans."""
        self.worker.stop()
        if self.tracing is not None:
            self.tracing.stop()

    def refuse_if_stopping(self) -> None:
        """Raise ApiError once the server has been told to stop."""
        if self.stopping:
            headers = {"Retry-After": "5"}
            raise ApiError(503, "the server is stopping", code="stopping", headers=headers)

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

    def mode_reason(self, body: Body, options: GenerationOptions) -> ModeReason:
        """What chose the mode that a request's options say."""
        suffix = self.mode_of(body.model)
        asked = body.decoding.mode or suffix or self.defaults.mode
        if options.prediction and asked != "auto":
            return "prediction"
        if body.decoding.mode:
            return "request"
        return "model_suffix" if suffix else "server_default"

    def note_unknown(self, names: Mapping[str, Any]) -> None:
        """Log fields that are ignored, each once: clients cannot tell, whoever runs this can."""
        for name in names:
            if name not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
                self._unknown.add(name)
                logger.warning("ignored", extra={"facts": {"field": name[:80]}})

    async def submit(
        self,
        http: Request,
        choices: list[Choice],
        names: Mapping[str, str],
        *,
        kind: Kind,
        name: str,
        answer_id: str,
        stream: bool,
    ) -> list[EngineRequest]:
        """Queue the choices of an answer.

        `names`: what the body calls the fields that the engine knows.
        """
        trace = self.tracing and self.tracing.trace(
            http.headers, kind=kind, name=name, answer_id=answer_id, choices=len(choices)
        )
        with fields_named(names):
            return await self.worker.submit(choices, partial(self._finished, trace), stream=stream)

    async def answer(
        self,
        http: Request,
        answer: Answer,
        body: GenerationRequest,
        choices: list[Choice],
        names: Mapping[str, str],
    ) -> Any:
        """Decode the choices and answer, streaming or not."""
        requests = await self.submit(
            http,
            choices,
            names,
            kind=answer.kind,
            name=answer.name,
            answer_id=answer.id,
            stream=bool(body.stream),
        )
        timeout = self.settings.request_timeout
        if body.stream:
            stream = StreamSettings(
                include_usage=body.include_usage,
                continuous_usage=body.continuous_usage,
                show_drafts=body.decoding.show_drafts,
                draft_interval=1 / self.settings.draft_fps,
                ping_interval=self.settings.ping_interval,
            )
            return self.streamed(requests, events(answer, requests, stream, timeout))
        return await self.at_once(http, requests, whole(answer, requests, timeout))

    def streamed(self, requests: list[EngineRequest], lines: AsyncIterator[bytes]) -> EventStream:
        """Server-sent events until their end, or until the client has gone."""
        return EventStream(lines, requests, lambda: self._drop(requests))

    async def at_once(
        self, http: Request, requests: list[EngineRequest], answer: Coroutine[Any, Any, dict]
    ) -> Response:
        """The finished answer; nothing is left running if the client goes or time runs out."""
        watcher = asyncio.create_task(gone(http.receive))
        work = asyncio.create_task(answer)
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                return Response(status_code=499)
            return JSONResponse(work.result())
        except TimeoutError:
            timeout = self.settings.request_timeout
            raise ApiError(408, f"not finished within {timeout:g} seconds") from None
        finally:
            watcher.cancel()
            work.cancel()
            self._drop(requests)

    def new_answer(self, kind: Kind, name: str, mode_reason: ModeReason, **more: Any) -> Answer:
        """An answer with an id of its own."""
        prefix = "chatcmpl" if kind == "chat" else "cmpl"
        answer_id = f"{prefix}-{secrets.token_hex(12)}"
        return Answer(
            id=answer_id,
            kind=kind,
            model=self.model,
            name=name,
            fingerprint=self.fingerprint,
            mode_reason=mode_reason,
            **more,
        )

    def _drop(self, requests: list[EngineRequest]) -> None:
        for request in requests:
            self.worker.cancel(request)

    def _finished(self, trace: Trace | None, request: EngineRequest, reason: EndReason) -> None:
        self.metrics.finished(request, reason)
        self.log.finished(request, reason)
        if trace is not None:
            trace.finished(request, reason)
