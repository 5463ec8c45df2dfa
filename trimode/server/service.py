"""One model and its engine, as every way to reach them sees them. Knows no HTTP."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from functools import partial

from trimode.checkpoints import LoadedModel
from trimode.decoding import CostCurve
from trimode.engine import Engine
from trimode.server.observe import IgnoredFields, RequestLog, RequestSpan, ServerMetrics, Tracing
from trimode.server.observe.telemetry import Operation
from trimode.server.runtime import (
    ActiveRequest,
    Choice,
    EndReason,
    EngineWorker,
    StoppedError,
    fingerprint,
)
from trimode.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_POLL = 0.05
"""Seconds between two looks at what still runs, while the service drains."""


class Service:
    """Takes choices, has the engine decode them, and observes how they end.

    `start` and `stop` frame its life; between them `drain` finishes what runs. A web application,
    a test or another host calls them.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: ServerSettings,
        *,
        thread: Executor | None = None,
        costs: CostCurve | None = None,
    ) -> None:
        """Nothing runs before `start`. `open_service` loads a model and calls this.

        Args:
            model: the model to serve.
            settings: of the server.
            thread: the engine's thread, best the one that loaded the model (see `EngineWorker`).
            costs: of a pass. None: measured when the first request in mode `auto` comes.
        """
        self.model, self.settings = model, settings
        self.name = settings.name or model.name
        """The model name that clients use."""
        self.defaults = settings.defaults
        """Options that a request does not give; the mode may be changed at run time."""
        self.metrics = ServerMetrics(self.name)
        self.ignored_fields = IgnoredFields()
        self.log = RequestLog(model.tokenizer, prompts=settings.log_prompts)
        engine = Engine(model, max_sequences=settings.max_sequences, costs=costs)
        self.metrics.watch(engine)
        self.worker = EngineWorker(engine, max_waiting=settings.max_waiting, thread=thread)
        endpoint = settings.otlp_traces_endpoint
        self.tracing = None if endpoint is None else Tracing(endpoint, self.name)
        self.created = int(time.time())
        self.stopping = False
        """Whether new requests are refused."""
        self.fingerprint = ""

    async def start(self) -> None:
        """Start the engine's loop."""
        self.worker.start()
        self.fingerprint = await self.worker.call(lambda: fingerprint(self.model))

    async def drain(self, cut_short: Callable[[], bool] = lambda: False) -> None:
        """Refuse new requests, let running ones finish for `shutdown_timeout`, end the others.

        Args:
            cut_short: asked now and then whether to end the others at once.
        """
        self.stopping = True
        timeout = self.settings.shutdown_timeout
        try:
            async with asyncio.timeout(timeout):
                while self.worker.busy and not cut_short():
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            logger.warning("requests cut off", extra={"facts": {"after": timeout}})
        self.worker.fail_all(StoppedError("the server is stopping"))

    def stop(self) -> None:
        """Cancel what still runs, end the engine's loop and send the last spans; may block."""
        self.worker.stop()
        if self.tracing is not None:
            self.tracing.stop()

    async def submit(
        self,
        choices: list[Choice],
        *,
        operation: Operation,
        model_name: str,
        answer_id: str,
        headers: Mapping[str, str],
        stream: bool,
    ) -> list[ActiveRequest]:
        """Queue the choices of one answer, all or none.

        Args:
            choices: what the engine is asked for.
            operation: the kind of endpoint, for the span.
            model_name: the model name that the client gave.
            answer_id: the answer's `id`.
            headers: of the request; they may name a parent span.
            stream: whether the client gets text before the end.

        Raises:
            InputError: the engine refuses a choice.
            QueueFullError: too many requests wait.
        """
        span = self.tracing and self.tracing.begin(
            headers,
            operation=operation,
            model_name=model_name,
            answer_id=answer_id,
            choices=len(choices),
        )
        return await self.worker.submit(choices, partial(self._finished, span), stream=stream)

    def cancel(self, requests: Iterable[ActiveRequest]) -> None:
        """Free what the engine holds for requests; nothing happens to those that have ended."""
        for request in requests:
            self.worker.cancel(request)

    def _finished(
        self, span: RequestSpan | None, request: ActiveRequest, reason: EndReason
    ) -> None:
        self.metrics.finished(request, reason)
        self.log.finished(request, reason)
        if span is not None:
            span.finished(request, reason)
