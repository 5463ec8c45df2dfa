"""The thread that owns the engine, and what the event loop sees of it.

Requests and cancellations go in through one queue; updates come out through each request's own
asyncio queue. Nothing else is shared.
"""

import asyncio
import logging
import queue
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from trimode.config import GenerationOptions
from trimode.decoding import Drafted, Event
from trimode.engine import Engine, FinishReason, Sequence, Update
from trimode.errors import InputError, TrimodeError

logger = logging.getLogger(__name__)

T = TypeVar("T")

Choice = tuple[tuple[int, ...], GenerationOptions]
"""A prompt and what is asked for."""


class QueueFullError(TrimodeError):
    """More requests wait than the server lets wait."""


class EngineFailedError(TrimodeError):
    """A pass failed; the requests in it are lost, the server goes on."""

    status = 500


class StoppedError(EngineFailedError):
    """The server stops and waits no longer."""

    status = 503


EndReason = Literal["stop", "length", "abort", "error"]
"""How a request ended: by itself, because its client left or its time was over, or by a fault."""


@dataclass(frozen=True, slots=True)
class Step:
    """An update of a request, and how the request ended if this is its last."""

    update: Update
    finish_reason: FinishReason | None
    nfe: int
    """Passes made for it when it happened: the engine goes on while the step is on its way."""


@dataclass(eq=False)
class Request:
    """A request in the engine, as its handler sees it."""

    sequence: Sequence
    loop: asyncio.AbstractEventLoop
    arrived: float
    """When it was submitted, on the monotonic clock."""
    index: int
    """Its place among the choices submitted with it."""
    on_finish: "OnFinish"
    steps: asyncio.Queue[Step | EngineFailedError] = field(default_factory=asyncio.Queue)
    first_draft_at: float | None = None
    accepted: Counter[int] = field(default_factory=Counter)
    """Draft tokens that were right, by their place in the draft."""
    switches: Counter[tuple[str, str]] = field(default_factory=Counter)
    """In mode `auto`: how often it went from one plan to another."""
    _plan: str | None = None

    def count(self, event: Event) -> None:
        """Take note of an event, in the engine's thread."""
        if isinstance(event, Drafted):
            self.first_draft_at = self.first_draft_at or time.monotonic()
            return
        if event.drafted:
            self.accepted.update(range(len(event.tokens) - 1))
        if event.plan is not None:
            if self._plan not in (None, event.plan):
                self.switches[self._plan or "", event.plan] += 1
            self._plan = event.plan

    async def __aiter__(self) -> AsyncIterator[Step]:
        """Updates until the last.

        Raises:
            EngineFailedError: a pass failed.
        """
        while True:
            step = await self.steps.get()
            if isinstance(step, EngineFailedError):
                raise step
            yield step
            if step.finish_reason is not None:
                return


OnFinish = Callable[[Request, EndReason], None]
"""Called in the engine's thread when a request has ended."""


class EngineWorker:
    """Runs an engine in a thread of its own; idle without spinning."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int,
        thread: Executor | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            engine: touched by its own thread only.
            max_waiting: requests that may wait for a slot.
            thread: an executor of one thread. Give the one that loaded the model: OpenMP keeps a
                team for each thread that computes, and once they are more than the cores they
                stop spinning, which doubles the time of a small pass.
        """
        self.engine = engine
        self.max_waiting = max_waiting
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[Sequence, Request] = {}
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running: Future[None] | None = None

    def start(self) -> None:
        """Start the loop."""
        self._running = self._thread.submit(self._run)

    @property
    def busy(self) -> bool:
        """Whether a request has not ended yet."""
        return bool(self._requests)

    def fail_all(self, error: EngineFailedError) -> None:
        """End every request with an error."""
        self._commands.put(lambda: self._fail_all(error))

    def stop(self) -> None:
        """Cancel what runs and end the loop."""
        self._commands.put(None)
        if self._running is not None:
            self._running.result()

    async def submit(self, choices: list[Choice], on_finish: OnFinish) -> list[Request]:
        """Queue one request per choice, all or none; `on_finish` is called for each that ends.

        Raises:
            InputError: the engine refuses one, or they are more than can ever be queued.
            QueueFullError: too many wait.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        most = self.engine.max_sequences + self.max_waiting
        if len(choices) > most:
            raise InputError("choices", f"{len(choices)} answers", f"at most {most} at once")

        def add() -> list[Request]:
            requests: list[Request] = []
            free = self.engine.max_sequences - len(self.engine.live)
            if len(self.engine.waiting) + len(choices) > self.max_waiting + max(free, 0):
                raise QueueFullError(f"{len(self.engine.waiting)} requests are waiting")
            try:
                for index, (prompt, options) in enumerate(choices):
                    sequence = self.engine.add(prompt, options)
                    requests.append(Request(sequence, loop, now, index, on_finish))
            except Exception:
                for request in requests:
                    self.engine.cancel(request.sequence)
                raise
            self._requests.update((request.sequence, request) for request in requests)
            return requests

        added = self._between_passes(add)
        try:
            return await asyncio.shield(added)
        except asyncio.CancelledError:
            added.add_done_callback(self._drop)  # the requests exist or soon will
            raise

    async def call(self, function: Callable[[], T]) -> T:
        """Run something between two passes, in the engine's thread."""
        return await self._between_passes(function)

    def _between_passes(self, function: Callable[[], T]) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result: object = function()
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
                result = error
            loop.call_soon_threadsafe(_settle, done, result)

        self._commands.put(run)
        return done

    def cancel(self, request: Request) -> None:
        """Drop a request; harmless for one that has ended."""
        self._commands.put(lambda: self._cancel(request.sequence))

    def _drop(self, added: "asyncio.Future[list[Request]]") -> None:
        if not added.cancelled() and added.exception() is None:
            for request in added.result():
                self.cancel(request)

    def _cancel(self, sequence: Sequence, reason: EndReason = "abort") -> None:
        request = self._requests.pop(sequence, None)
        if sequence.finish_reason is None:
            self.engine.cancel(sequence)
        if request is not None:
            request.on_finish(request, reason)

    def _run(self) -> None:
        while True:
            try:
                command = self._commands.get(block=not self.engine.busy)
            except queue.Empty:
                self._step()
                continue
            if command is None:
                for sequence in list(self._requests):
                    self._cancel(sequence)
                return
            command()

    def _step(self) -> None:
        try:
            updates = self.engine.step()
        except Exception:
            logger.exception("a pass failed")
            self._fail_all(EngineFailedError("the model failed on this batch"))
            return
        last = {update.sequence: i for i, update in enumerate(updates)}
        for i, update in enumerate(updates):
            sequence = update.sequence
            request = self._requests.get(sequence)
            if request is None:
                continue
            request.count(update.event)
            ended = sequence.finish_reason if last[sequence] == i else None
            if ended is not None:  # counted before its client can ask for the figures
                del self._requests[sequence]
                request.on_finish(request, "abort" if ended == "cancelled" else ended)
            self._deliver(request, Step(update, ended, sequence.stats.nfe))

    def _fail_all(self, error: EngineFailedError) -> None:
        failed = [*self._requests.values()]
        for request in failed:  # the engine is clean again before anyone hears of it
            self._cancel(request.sequence, "error")
        for request in failed:
            self._deliver(request, error)

    def _deliver(self, request: Request, step: Step | EngineFailedError) -> None:
        if not request.loop.is_closed():
            request.loop.call_soon_threadsafe(request.steps.put_nowait, step)


def _settle(future: asyncio.Future, value: object) -> None:
    if future.cancelled():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
