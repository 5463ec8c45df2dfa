"""The thread that owns the engine, and what the event loop sees of it.

Requests and cancellations go in through one queue. Steps come out through the channel of each
answer. Nothing else is shared.
"""

import asyncio
import logging
import math
import os
import queue
import time
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from trimode.config import GenerationOptions
from trimode.decoding import Drafted, Event
from trimode.engine import Engine, PromptImage, Sequence
from trimode.errors import GrammarError, InputError, NotFiniteError, TrimodeError
from trimode.server.runtime.steps import Channel, Step, joined

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Choice(NamedTuple):
    """What one choice of an answer asks of the engine."""

    prompt: tuple[int, ...]
    options: GenerationOptions
    images: tuple[PromptImage, ...] = ()


_CHUNKS_A_SECOND = 100
"""Chunks of text for all streaming clients together.

A chunk is sent on a core that the passes use too, and delays them by some 0.15 ms. With many
clients a chunk therefore holds several tokens; with one client each token is sent at once.
"""
_STUCK_SECONDS = 60.0
"""A step that takes longer is taken for one that never ends."""
_IDLE_SECONDS = 5.0
"""Seconds without a request after which costs that passes disagree with are measured again."""
_MEASURE_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0
"""Least seconds between two measurements, doubled after each, and how long they may become."""
_LONGEST_HOLD = 0.15
"""Most seconds for which text is held, however many clients there are."""


class QueueFullError(TrimodeError):
    """More requests wait than the server lets wait."""


class EngineFailedError(TrimodeError):
    """A pass failed. Its requests are lost; the server goes on."""

    status = 500


class GrammarFailedError(EngineFailedError):
    """The answer could not be held to the grammar that its request gave."""

    status = 400


class StoppedError(EngineFailedError):
    """The server stops and no longer waits for requests to finish."""

    status = 503


EndReason = Literal["stop", "length", "abort", "error"]
"""How a request ended: by itself (`stop`, `length`), because its client left or its time was over
(`abort`), or by a fault (`error`)."""


@dataclass(eq=False)
class ActiveRequest:
    """One choice in the engine, from its arrival to its end."""

    sequence: Sequence
    channel: Channel
    """Shared by the choices of an answer."""
    arrived: float
    """Monotonic time at which it was submitted."""
    index: int
    """The number of its choice in the answer."""
    on_finish: "OnFinish"
    stream: bool
    """Whether its client gets text before the end."""
    held: list[Step] = field(default_factory=list)
    """Steps that have not left the engine's thread yet."""
    begun: bool = False
    """Whether any step has left it."""
    first_draft_at: float | None = None
    accepted: Counter[int] = field(default_factory=Counter)
    """Accepted draft tokens by their position in the draft."""
    switches: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Mode `auto`: how often it changed from one plan to another."""
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

    def due(self, *, tick: bool) -> bool:
        """Whether held steps should leave now: at a tick, or at once for first text and drafts."""
        if not self.held or not self.stream:
            return False
        return tick or not self.begun or self.sequence.options.show_drafts

    def take(self) -> list[Step]:
        """Held steps: all of them for a client that wants drafts, otherwise joined into one."""
        held, self.held, self.begun = self.held, [], True
        return held if self.sequence.options.show_drafts else [joined(held)]


OnFinish = Callable[[ActiveRequest, EndReason], None]
"""Called in the engine's thread when a request has ended."""


class EngineWorker:
    """Runs an engine in a thread of its own, which sleeps while there is nothing to decode."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_waiting: int,
        thread: Executor | None = None,
    ) -> None:
        """Nothing runs before `start`.

        Args:
            engine: only the engine's thread touches it.
            max_waiting: requests that may wait for a slot.
            thread: an executor of one thread. Give the one that loaded the model: OpenMP keeps a
                team of threads for each thread that computes. If there are more of them than
                cores, they stop spinning, and a small pass takes twice as long.
        """
        self.engine = engine
        self.max_waiting = max_waiting
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._requests: dict[Sequence, ActiveRequest] = {}
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._running: Future[None] | None = None
        self._ticked_at = -math.inf
        self._step_began: float | None = None
        self._measuring: Generator[None, None, bool] | None = None
        self._measure_at, self._measure_pause = -math.inf, _MEASURE_PAUSE

    def start(self) -> None:
        """Start the loop."""
        self._running = self._thread.submit(self._run)
        self._running.add_done_callback(_log_end)

    @property
    def fault(self) -> str | None:
        """Why no request will be answered, in words; None if all is well."""
        began = self._step_began
        if began is not None and time.monotonic() - began > _STUCK_SECONDS:
            return "the engine does not answer"
        if self._running is not None and self._running.done():
            return "the engine's thread has ended"
        return None

    @property
    def busy(self) -> bool:
        """Whether a request has not ended yet."""
        return bool(self._requests)

    def fail_all(self, error: EngineFailedError) -> None:
        """End every request with an error."""
        self._commands.put(lambda: self._fail_all(error))

    def stop(self) -> None:
        """Cancel what runs and end the loop. An engine that is stuck is left behind."""
        self._commands.put(None)
        if self._running is None:
            return
        if wait([self._running], _STUCK_SECONDS).not_done:
            logger.critical("the engine does not end")
            os._exit(1)  # no thread can be ended from outside

    async def submit(
        self,
        choices: list[Choice],
        on_finish: OnFinish,
        *,
        stream: bool,
        answer_id: str | None = None,
    ) -> list[ActiveRequest]:
        """Queue one request per choice, all or none.

        Args:
            choices: of one answer.
            on_finish: called for each choice that ends.
            stream: send text as it is decoded, joined so that the event loop can keep up (drafts
                are never joined). Otherwise all text comes at the end, as one step.
            answer_id: names the requests in logs and errors.

        Raises:
            InputError: the engine refuses a choice, or there are more than can ever be queued.
            QueueFullError: too many requests wait.
        """
        channel, now = Channel(), time.monotonic()
        most = self.engine.max_sequences + self.max_waiting
        if len(choices) > most:
            raise InputError("choices", f"{len(choices)} answers", f"at most {most} at once")

        def add() -> list[ActiveRequest]:
            requests: list[ActiveRequest] = []
            free = self.engine.max_sequences - len(self.engine.live)
            if self.engine.queued + len(choices) > self.max_waiting + max(free, 0):
                raise QueueFullError(f"{self.engine.queued} requests are waiting")
            try:
                for index, choice in enumerate(choices):
                    name = answer_id if len(choices) == 1 else f"{answer_id}.{index}"
                    own = None if answer_id is None else name
                    sequence = self.engine.add(
                        choice.prompt, choice.options, images=choice.images, sequence_id=own
                    )
                    requests.append(ActiveRequest(sequence, channel, now, index, on_finish, stream))
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
            added.add_done_callback(self._cancel_added)  # the requests exist or soon will
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
            except Exception as error:  # noqa: BLE001 - the caller gets it
                result = error
            loop.call_soon_threadsafe(_settle, done, result)

        self._commands.put(run)
        return done

    def cancel(self, request: ActiveRequest) -> None:
        """Cancel a request. Nothing happens if it has ended."""
        self._commands.put(lambda: self._cancel(request.sequence))

    def _cancel_added(self, added: "asyncio.Future[list[ActiveRequest]]") -> None:
        if not added.cancelled() and added.exception() is None:
            for request in added.result():
                self.cancel(request)

    def _cancel(self, sequence: Sequence, reason: EndReason = "abort") -> None:
        if sequence.finish_reason is None:
            self.engine.cancel(sequence)
        if (request := self._requests.get(sequence)) is not None:
            self._end(request, reason)

    def _end(self, request: ActiveRequest, reason: EndReason) -> None:
        """Report a request, then forget it: once the worker is idle, all requests are counted."""
        try:
            request.on_finish(request, reason)
        finally:
            del self._requests[request.sequence]

    def _run(self) -> None:
        while True:
            try:
                command = self._commands.get(*self._patience())
            except queue.Empty:
                if self.engine.busy:
                    self._step()
                else:
                    self._measure()
                continue
            if command is None:
                for sequence in list(self._requests):
                    self._cancel(sequence)
                return
            command()
            if self.engine.busy and self._measuring is not None:
                self._measuring.close()
                self._measuring = None

    def _patience(self) -> tuple[bool, float | None]:
        """Whether to wait for a command, and for how many seconds; None is for ever."""
        if self.engine.busy or self._measuring is not None:
            return False, None
        if self.engine.doubts_costs:
            return True, max(_IDLE_SECONDS, self._measure_at - time.monotonic())
        return True, None

    def _measure(self) -> None:
        """Time one more pass, while nobody waits for an answer."""
        if self._measuring is None:
            self._measuring = self.engine.measure_again()
        try:
            next(self._measuring)
            return
        except StopIteration:
            pass
        except Exception:
            logger.exception("the cost of a pass could not be measured")
        self._measuring = None
        self._measure_at = time.monotonic() + self._measure_pause
        self._measure_pause = min(2 * self._measure_pause, _LONGEST_PAUSE)

    def _step(self) -> None:
        self._step_began = time.monotonic()
        try:
            updates = self.engine.step()
        except Exception:
            logger.exception("a pass failed")
            self._fail_all(EngineFailedError("the model failed on this batch"))
            return
        finally:
            self._step_began = None
        last = {update.sequence: i for i, update in enumerate(updates)}
        finished: list[ActiveRequest] = []
        failed: list[ActiveRequest] = []
        for i, update in enumerate(updates):
            sequence = update.sequence
            request = self._requests.get(sequence)
            if request is None:
                continue
            if sequence.finish_reason == "error" and last[sequence] == i:
                self._end(request, "error")
                failed.append(request)
                continue
            request.count(update.event)
            ended = sequence.finish_reason if last[sequence] == i else None
            if ended is not None:  # count it before its client can read the metrics
                self._end(request, "abort" if ended == "cancelled" else ended)
                finished.append(request)
            request.held.append(Step(update, ended, sequence.stats.nfe))
        tick = self._tick()
        due = [request for request in self._requests.values() if request.due(tick=tick)]
        due += [request for request in failed if request.due(tick=True)]
        self._deliver([(r, step) for r in (*finished, *due) for step in r.take()])
        self._deliver([(request, _failure(request.sequence)) for request in failed])

    def _tick(self) -> bool:
        """Whether text has been held for long enough. The text of all clients leaves together."""
        streams = sum(request.stream for request in self._requests.values())
        hold = min(_LONGEST_HOLD, (streams - 1) / _CHUNKS_A_SECOND)
        now = time.monotonic()
        if now - self._ticked_at < hold:
            return False
        self._ticked_at = now
        return True

    def _fail_all(self, error: EngineFailedError) -> None:
        failed = [*self._requests.values()]
        for request in failed:  # free the engine before clients are told
            self._cancel(request.sequence, "error")
        self._deliver([(r, step) for r in failed if r.due(tick=True) for step in r.take()])
        self._deliver([(request, error) for request in failed])

    def _deliver(self, steps: "list[tuple[ActiveRequest, Step | EngineFailedError]]") -> None:
        """Wake the event loop once for all of them."""
        if steps and not (loop := steps[0][0].channel.loop).is_closed():
            loop.call_soon_threadsafe(_put_all, steps)


def _log_end(running: Future[None]) -> None:
    """Say why the engine's thread has ended, unless it was told to."""
    if (error := running.exception()) is not None:
        logger.critical("the engine's thread has ended", exc_info=error)


def _failure(sequence: Sequence) -> EngineFailedError:
    """What the client of a failed request is told."""
    if isinstance(sequence.error, GrammarError):
        return GrammarFailedError(str(sequence.error))
    if isinstance(sequence.error, NotFiniteError):
        return EngineFailedError(f"request {sequence.id}: {sequence.error}")
    return EngineFailedError(f"the model failed on request {sequence.id}; the log says more")


def _put_all(steps: list[tuple[ActiveRequest, Step | EngineFailedError]]) -> None:
    for request, step in steps:
        request.channel.put(request.index, step)


def _settle(future: asyncio.Future, value: object) -> None:
    if future.cancelled():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
