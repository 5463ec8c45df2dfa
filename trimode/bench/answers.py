"""What is recorded of one request."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Self


@dataclass(slots=True, kw_only=True)
class Answer:
    """One request and its answer; times are seconds since its group began."""

    prompt: int
    """Number of the prompt in the workload, from 0."""
    sent: float
    finished: float
    share: float = 0.0
    """Seconds of the machine that it took: at each moment, the requests in flight share the time
    equally. The shares of all requests add up to the time that has passed."""
    chunks: list[tuple[float, int | None]] = field(default_factory=list)
    """When text or tokens came (seconds since the request was sent), and how many tokens; None if a
    server does not say."""
    text: str = ""
    token_ids: list[int] | None = None
    tokens: int | None = None
    """Completion tokens."""
    counted: str = "exactly"
    """How the tokens were counted: exactly, or `by chunks` where a server does not say."""
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    nfe: int | None = None
    passes: dict[str, int] = field(default_factory=dict)
    plans: dict[str, int] = field(default_factory=dict)
    cycles: int = 0
    cycle_tokens: int = 0
    error: str | None = None
    """What went wrong; None if there is an answer."""

    @property
    def ttft(self) -> float | None:
        """Seconds to the first text."""
        return self.chunks[0][0] if self.chunks else None

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first chunk: (last - first) / (tokens - tokens of the first).

        The first chunk of a server that does not count counts as one token.
        """
        if not self.chunks or self.tokens is None:
            return None
        after = self.tokens - (self.chunks[0][1] or 1)
        return (self.chunks[-1][0] - self.chunks[0][0]) / after if after > 0 else None

    def to_json(self) -> dict[str, Any]:
        """As results have it, without what is empty."""
        row = asdict(self)
        for name in ("sent", "finished", "share"):
            row[name] = round(row[name], 6)
        row["chunks"] = [[round(seconds, 6), tokens] for seconds, tokens in self.chunks]
        optional = ("passes", "plans", "cycles", "cycle_tokens")
        return {k: v for k, v in row.items() if v is not None and not (k in optional and not v)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The answer of a result."""
        found = cls(**{name: row[name] for name in cls.__dataclass_fields__ if name in row})
        found.chunks = [(seconds, tokens) for seconds, tokens in found.chunks]
        return found


def shares(intervals: Sequence[tuple[float, float]]) -> list[float]:
    """Of the time during which requests were in flight, the part of each one.

    Args:
        intervals: when each request was sent and when it ended.
    """
    found = [0.0] * len(intervals)
    moments = sorted({moment for interval in intervals for moment in interval})
    for begin, end in pairwise(moments):
        live = [i for i, (sent, done) in enumerate(intervals) if sent <= begin and end <= done]
        for i in live:
            found[i] += (end - begin) / len(live)
    return found
