"""The one place where passes, tokens and time are counted.

NFE = 1 for the prefill, however chunked, + every later pass made for the sequence.
TPF = completion tokens (the stop token included) / NFE.
Acceptance length = tokens committed per draft-verify cycle, the verifier's own included.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from trimode.decoding.events import Committed
from trimode.decoding.span import SpanKind


@dataclass(slots=True)
class Stats:
    """Counters of one sequence; times are seconds on the engine's monotonic clock."""

    passes: Counter[SpanKind] = field(default_factory=Counter)
    cached_tokens: int = 0
    """Prompt tokens whose keys and values came from the KV cache of another request."""
    completion_tokens: int = 0
    cycles: int = 0
    """Draft-verify cycles."""
    cycle_tokens: int = 0
    """Tokens those cycles committed."""
    drafted_tokens: int = 0
    revisions: int = 0
    plans: Counter[str] = field(default_factory=Counter)
    """Passes by what `auto` chose for them."""
    predicted_tokens: int = 0
    """Tokens of the request's prediction that were tried."""
    accepted_prediction_tokens: int = 0
    admitted_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None

    @classmethod
    def pooled(cls, several: Iterable["Stats"]) -> "Stats":
        """The counts of several sequences together; it has no times of its own."""
        total = cls()
        for one in several:
            total.passes += one.passes
            total.cached_tokens += one.cached_tokens
            total.completion_tokens += one.completion_tokens
            total.cycles += one.cycles
            total.cycle_tokens += one.cycle_tokens
            total.drafted_tokens += one.drafted_tokens
            total.revisions += one.revisions
            total.plans += one.plans
            total.predicted_tokens += one.predicted_tokens
            total.accepted_prediction_tokens += one.accepted_prediction_tokens
        return total

    def count_pass(self, kind: SpanKind) -> None:
        """Count a finished span; the prefill counts once however many spans it took."""
        if kind != "prefill" or not self.passes["prefill"]:
            self.passes[kind] += 1

    def count(self, event: Committed, *, offered: int) -> None:
        """Count what a commit brought; `offered`: its tokens before a stop or the budget cut it."""
        taken = len(event.tokens)
        self.completion_tokens += taken
        self.revisions += event.revisions
        if event.drafted is not None:
            self.cycles += event.new_cycle
            self.cycle_tokens += taken
            self.drafted_tokens += event.drafted
        if event.predicted:
            self.predicted_tokens += event.predicted
            self.accepted_prediction_tokens += min(taken, offered - 1)
        if event.plan is not None:
            self.plans[event.plan] += 1

    @property
    def nfe(self) -> int:
        """Forward passes made for this sequence."""
        return self.passes.total()

    @property
    def tokens_per_forward(self) -> float:
        """Completion tokens / NFE."""
        return self.completion_tokens / self.nfe if self.nfe else 0.0

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per draft-verify cycle; None if there was no cycle."""
        return self.cycle_tokens / self.cycles if self.cycles else None

    @property
    def seconds(self) -> float:
        """From admission to the end."""
        if self.admitted_at is None or self.finished_at is None:
            return 0.0
        return self.finished_at - self.admitted_at

    @property
    def time_to_first_token(self) -> float | None:
        """From admission to the first committed token."""
        if self.admitted_at is None or self.first_token_at is None:
            return None
        return self.first_token_at - self.admitted_at

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens / seconds."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0
