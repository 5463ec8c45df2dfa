"""The parts of an answer with one choice, as they come from the engine."""

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

from trimode.server.dialogue.form import AnswerForm
from trimode.server.dialogue.reader import AnswerReader, Part
from trimode.server.runtime import ActiveRequest


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an answer."""

    reader: AnswerReader
    """Has all of it."""
    cut_off: bool
    """Whether it reached a limit on tokens."""
    stop_string: str | None
    """The stop string that ended it."""


async def follow(
    request: ActiveRequest, form: AnswerForm, timeout: float, ping_interval: float
) -> AsyncIterator[Part | Ended | None]:
    """Parts as they come, then the end. None comes after `ping_interval` seconds of silence.

    Raises:
        TimeoutError: the answer did not end in time.
        EngineFailedError: a pass failed.
        ClientGoneError: nobody reads the answer any more.
    """
    reader = form.reader()
    async for found in request.channel.follow(1, timeout, ping_interval):
        if found is None:
            yield None
            continue
        step = found[1]
        for part in reader.push(step.update.text):
            yield part
        if step.finish_reason is not None:
            cut_off = step.finish_reason == "length"
            for part in reader.finish(cut_off=cut_off):
                yield part
            yield Ended(reader, cut_off, request.sequence.text_stream.stop_string)


async def whole(request: ActiveRequest, form: AnswerForm, timeout: float) -> Ended:
    """The end of an answer, once it is there.

    Raises:
        TimeoutError: it did not end in time.
        EngineFailedError: a pass failed.
    """
    async for found in follow(request, form, timeout, math.inf):
        if isinstance(found, Ended):
            return found
    raise AssertionError("an answer ends with its end")
