"""One model and its engine, as every way to reach them sees them. Knows no HTTP."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from trimode.checkpoints import LoadedModel
from trimode.decoding import CostCurve, inherited
from trimode.engine import Engine
from trimode.model import expected_tensors
from trimode.server.dialogue.dialect import dialect_of
from trimode.server.dialogue.form import AnswerForm
from trimode.server.dialogue.prepare import Conversation, prepare
from trimode.server.dialogue.prompt import ChatPrompt
from trimode.server.observe import IgnoredFields, RequestLog, RequestSpan, ServerMetrics, Tracing
from trimode.server.observe.telemetry import Operation
from trimode.server.pictures import Pictures
from trimode.server.runtime import (
    ActiveRequest,
    Choice,
    EndReason,
    EngineWorker,
    StoppedError,
    fingerprint,
)
from trimode.server.settings import ServerSettings
from trimode.text import take_images
from trimode.text.grammar_check import GrammarCheck

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PREPARING = 2
"""Requests that are read, rendered and tokenised at once."""

_PICTURES_OF_A_BODY = 2
"""Room of a body for pictures, in the largest that are allowed."""
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
        engine = Engine(model, max_sequences=settings.max_sequences, costs=costs, interactive=True)
        self.metrics.watch(engine)
        self.worker = EngineWorker(engine, max_waiting=settings.max_waiting, thread=thread)
        endpoint = settings.otlp_traces_endpoint
        self.tracing = None if endpoint is None else Tracing(endpoint, self.name)
        self.created = int(time.time())
        shapes = expected_tensors(model.config).values()
        self.parameters = sum(math.prod(shape) for shape in shapes)
        """How many numbers the model's weights are."""
        self.stopping = False
        """Whether new requests are refused."""
        self.fingerprint = ""
        self.dialect = dialect_of(model)
        """How the model writes thoughts and calls."""
        self.grammar_check = GrammarCheck()
        self.pictures = Pictures(model, settings)
        self._threads = ThreadPoolExecutor(_PREPARING, thread_name_prefix="prepare")
        if self.dialect.calls is None:
            logger.warning(
                "tools are not supported: the chat template writes calls in a form "
                "that is not known here"
            )

    async def start(self) -> None:
        """Start the engine's loop."""
        self.worker.start()
        self.fingerprint = await self.worker.call(lambda: fingerprint(self.model))

    def set_mode(self, mode: str) -> None:
        """Change the mode of requests that give none.

        Raises:
            InputError: there is no such mode, or the model cannot run it.
        """
        defaults = self.defaults.updated({"mode": mode})
        self.worker.engine.preview(inherited(defaults, defaults.mode))
        self.defaults = defaults

    async def prepare(self, conversation: Conversation) -> tuple[ChatPrompt, AnswerForm]:
        """The prompt of a conversation and the form of its answer, made beside the event loop.

        Raises:
            InputError: something of the conversation is refused; names the field.
        """
        messages, parts = take_images(conversation.messages)
        pictures = await self.pictures.read(parts)
        taken = replace(conversation, messages=messages)
        return await self.aside(
            partial(prepare, self.model, self.dialect, self.grammar_check, taken, pictures)
        )

    @property
    def max_body_bytes(self) -> int:
        """Largest body of a request: pictures come in base64."""
        if self.model.vision_or_none is None:
            return self.settings.max_body_bytes
        return self.settings.max_body_bytes + _PICTURES_OF_A_BODY * self.settings.image_limits.bytes

    async def aside(self, work: Callable[[], T]) -> T:
        """Run work that may take a while in a thread, beside the event loop and the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

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
        self.grammar_check.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.pictures.stop()
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
        finished = partial(self._finished, span)
        return await self.worker.submit(choices, finished, stream=stream, answer_id=answer_id)

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
