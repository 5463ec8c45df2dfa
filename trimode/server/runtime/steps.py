"""Steps of an answer's choices, on their way from the engine's thread to the event loop."""

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from trimode.decoding import Committed
from trimode.engine import FinishReason, Update
from trimode.errors import TrimodeError


class ClientGoneError(TrimodeError):
    """Nobody reads the answer any more."""


@dataclass(frozen=True, slots=True)
class Step:
    """An update of a request, and how the request ended if this is its last."""

    update: Update
    finish_reason: FinishReason | None
    nfe: int
    """Passes made for it when it happened: the engine goes on while the step is on its way."""


def joined(steps: list[Step]) -> Step:
    """Successive commits of a request as one: their tokens, log-probabilities and text."""
    if len(steps) == 1:
        return steps[0]
    events = [step.update.event for step in steps if isinstance(step.update.event, Committed)]
    event = Committed(
        tokens=tuple(chain.from_iterable(event.tokens for event in events)),
        logprobs=tuple(chain.from_iterable(event.logprobs for event in events)),
    )
    text = "".join(step.update.text for step in steps)
    update = Update(steps[-1].update.sequence, event, text)
    return Step(update, steps[-1].finish_reason, steps[-1].nfe)


class Channel:
    """Steps of all choices of one answer, in the order in which they happened, for one reader."""

    def __init__(self) -> None:
        """The channel belongs to the running event loop."""
        self.loop = asyncio.get_running_loop()
        self._steps: deque[tuple[int, Step | Exception] | None] = deque()
        self._waiting: Counter[int] = Counter()
        self._reader: asyncio.Future[None] | None = None
        self._last_event_at = self.loop.time()

    def put(self, index: int, step: Step | Exception) -> None:
        """Append a step of choice `index`, or what ends the answer."""
        self._waiting[index] += 1
        self._append((index, step))

    async def get(self) -> tuple[int, Step] | None:
        """The next step and its choice's number; None: a ping of `watched` is due.

        Raises:
            TimeoutError: the deadline of `watched` is over.
            EngineFailedError: a pass failed.
            ClientGoneError: nobody reads the answer any more.
        """
        if not self._steps:
            self._reader = self.loop.create_future()
            await self._reader
        found = self._steps.popleft()
        if found is None:
            return None
        index, step = found
        self._waiting[index] -= 1
        if isinstance(step, Exception):
            raise step
        return index, step

    async def follow(
        self, choices: int, timeout: float, ping_interval: float
    ) -> AsyncIterator[tuple[int, Step] | None]:
        """Steps as they come, each with its choice's number, until all choices have ended.

        None comes after `ping_interval` seconds without a step.

        Raises:
            TimeoutError: the choices did not end in time.
            EngineFailedError: a pass failed.
            ClientGoneError: nobody reads the answer any more.
        """
        with self.watched(timeout, ping_interval):
            while choices:
                found = await self.get()
                if found is not None:
                    choices -= found[1].finish_reason is not None
                yield found

    async def follow_to_end(self, choices: int, timeout: float) -> AsyncIterator[tuple[int, Step]]:
        """As `follow`, for an answer that is sent as one object: no pings."""
        async for found in self.follow(choices, timeout, math.inf):
            if found is not None:
                yield found

    def overtaken(self, index: int) -> bool:
        """Whether newer steps of a choice wait."""
        return self._waiting[index] > 0

    @contextmanager
    def watched(self, timeout: float, ping_interval: float) -> Iterator[None]:
        """Let `get` fail after `timeout` seconds, and return after `ping_interval` without a step.

        There is one timer for the whole answer: a timer for each `get` would double its cost.
        """
        self._last_event_at = self.loop.time()
        deadline = self._last_event_at + timeout

        def next_look() -> asyncio.TimerHandle:
            return self.loop.call_at(min(deadline, self._last_event_at + ping_interval), look)

        def look() -> None:
            nonlocal timer
            now = self.loop.time()
            if now >= deadline:
                self.put(0, TimeoutError())
                return
            if now >= self._last_event_at + ping_interval:
                self._append(None)
            timer = next_look()

        timer = next_look()
        try:
            yield
        finally:
            timer.cancel()

    def _append(self, found: tuple[int, Step | Exception] | None) -> None:
        self._steps.append(found)
        self._last_event_at = self.loop.time()
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
