"""Do real passes cost what the measured curve says?

Decisions depend on the curve's shape: how much longer a large pass takes than a small one. Passes
that are all slower by one factor change no decision, so a pass is compared with the other passes of
its time. A busy neighbour disturbs some passes for some time. So doubt needs many passes of one
size, again and again, over a while, that all err in one direction.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from trimode.decoding import CostCurve
from trimode.engine.costs import MOST_WAITED

LIMIT = 1.5
"""Factor between what passes of two sizes say of the curve, from which decisions suffer."""
PASSES = 8
"""Passes of one size that are judged together, by their median."""
VERDICTS = 5
"""Judgements in succession after which the curve is doubted, or trusted again."""
SECONDS = 30.0
"""Least time over which passes must disagree."""
MOST_ROWS = 128
"""Larger passes are left out: prompts are most of them, whose rows need no logits."""
MOST_CONTEXT = 512
"""Cached tokens of a sequence from which a pass is left out; the curve was timed over 256."""
_RECENT = 32
"""Passes that tell how fast the machine is at present."""


@dataclass(frozen=True, slots=True)
class TimedPass:
    """What a pass was, and how long it took."""

    rows: int
    sequences: int
    drafting: bool
    """Whether some of its rows run with the adapter."""
    context: float
    """Tokens in the KV cache of a sequence, on average."""
    seconds: float
    waited: float
    """Share of the time in which other programs had the processor."""
    at: float
    """When it ended, in seconds of any clock that only rises."""


@dataclass(slots=True)
class _Size:
    """What is known of passes of about one size."""

    fresh: list[float] = field(default_factory=list)
    """Passes that are not judged yet: how far each is from the curve and from its neighbours."""
    begun: float = 0.0
    """When the first of them ended."""
    level: float = 0.0
    """The median of the passes judged last."""
    judged: float = -math.inf
    """When they were judged."""
    verdict: int = 0
    """Of the last judgement: do larger passes cost more (1) or less (-1) than the curve says?"""
    streak: int = 0
    """How many judgements in succession came to this verdict."""
    since: float = 0.0
    """When the streak began."""
    wrong: bool = False
    """Whether the curve is doubted because of these passes."""


class CostCheck:
    """Compares passes with the curve that decisions are made by."""

    def __init__(self, curve: CostCurve) -> None:
        self.curve = curve
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._sizes: dict[int, _Size] = {}
        self._worst = ""

    @property
    def doubt(self) -> str | None:
        """Why the curve's shape is doubted, in words; None if it is not."""
        return self._worst if any(size.wrong for size in self._sizes.values()) else None

    def observe(self, timed: TimedPass) -> None:
        """Take note of a pass. Those that cannot be compared with the curve are left out."""
        if timed.rows > MOST_ROWS or timed.context > MOST_CONTEXT or timed.waited > MOST_WAITED:
            return
        said = self.curve.seconds(timed.rows, sequences=timed.sequences, drafting=timed.drafting)
        error = math.log(max(timed.seconds, 1e-9) / said)
        number = (timed.rows - 1).bit_length()
        if self._recent:
            size = self._sizes.setdefault(number, _Size())
            if not size.fresh:
                size.begun = timed.at
            size.fresh.append(error - median(self._recent))
            if len(size.fresh) == PASSES:
                self._judge(number, timed.at)
        self._recent.append(error)

    def _judge(self, number: int, now: float) -> None:
        """Compare passes of a size with those of the same time whose size differs most from it."""
        size = self._sizes[number]
        size.level, size.judged = median(size.fresh), now
        size.fresh.clear()
        excess = {
            other: (size.level - of.level) * (1 if number > other else -1)
            for other, of in self._sizes.items()
            if other != number and of.judged >= size.begun
        }
        if not excess:
            return
        other = max(excess, key=lambda one: abs(excess[one]))
        verdict = 0
        if abs(excess[other]) > math.log(LIMIT):
            verdict = 1 if excess[other] > 0 else -1
        if verdict != size.verdict or not size.streak:
            size.verdict, size.streak, size.since = verdict, 0, now
        size.streak += 1
        if size.streak < VERDICTS:
            return
        if not verdict:
            size.wrong = False
        elif now - size.since >= SECONDS:
            size.wrong = True
            small, large = sorted((number, other))
            self._worst = (
                f"passes of {_rows(large)} take {math.exp(excess[other]):.2g} times as long, "
                f"beside passes of {_rows(small)}, as was measured"
            )


def _rows(number: int) -> str:
    """The rows of passes of a size, in words."""
    most = 2**number
    least = most // 2 + 1
    return f"{least} to {most} rows" if least < most else f"{most} row{'s' * (most > 1)}"
