"""Steps of an answer's requests, on their way from the engine's thread to who writes the answer."""

import asyncio
from collections import Counter
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
    """Commits of a request one after the other as one: their tokens, log-probabilities and text."""
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
    """Steps of all choices of one answer, in the order in which they happened."""

    def __init__(self) -> None:
        """Belongs to the event loop that runs."""
        self.loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[tuple[int, Step | TrimodeError]] = asyncio.Queue()
        self._waiting: Counter[int] = Counter()

    def put(self, index: int, step: Step | TrimodeError) -> None:
        """Append a step of choice `index`, or what ends the answer."""
        self._steps.put_nowait((index, step))
        self._waiting[index] += 1

    async def get(self, deadline: float) -> tuple[int, Step]:
        """The next step and its choice's number.

        Raises:
            TimeoutError: none came before the deadline, on the loop's clock.
            EngineFailedError: a pass failed.
            ClientGoneError: as it says.
        """
        if self._steps.empty():
            async with asyncio.timeout_at(deadline):
                index, step = await self._steps.get()
        else:
            index, step = self._steps.get_nowait()
        self._waiting[index] -= 1
        if isinstance(step, TrimodeError):
            raise step
        return index, step

    def overtaken(self, index: int) -> bool:
        """Whether newer steps of a choice wait."""
        return self._waiting[index] > 0
