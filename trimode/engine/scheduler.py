"""Which sequences run, with how much KV cache, and which of their rows go into the next pass."""

import logging
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from trimode.decoding import CostCurve, causal_span
from trimode.engine.forward import Slice
from trimode.engine.kv_pool import KVPool
from trimode.engine.sequence import Sequence
from trimode.model import KVCache

logger = logging.getLogger(__name__)

_LENT_AHEAD = 256
"""Further tokens that a sequence's cache has room for if the pool is crowded."""
_EFFICIENT_ROWS = 64
"""Used if nobody has measured what a pass costs."""
_NEWCOMER_SECONDS = 0.12
"""Seconds of a pass that prompts may take while others wait for it, if its cost is known."""


@dataclass(frozen=True, slots=True)
class RowLimits:
    """How the rows of a pass are shared."""

    max_rows: int
    """Of a pass."""
    efficient_rows: int = _EFFICIENT_ROWS
    """With fewer rows than these, a row costs more than it has to."""
    newcomer_rows: int | None = None
    """Rows of prompts in a pass while others wait for it; None is `max_rows`."""

    @classmethod
    def measured(cls, max_rows: int, costs: CostCurve) -> "RowLimits":
        """The limits that follow from what a pass costs."""
        newcomer_rows = costs.rows_within(_NEWCOMER_SECONDS, max_rows)
        return cls(max_rows, costs.efficient_rows, newcomer_rows)


class Scheduler:
    """Waiting and live sequences, and the KV pool that they share."""

    def __init__(self, pool: KVPool, *, max_sequences: int, limits: RowLimits) -> None:
        self.pool = pool
        self.max_sequences = max_sequences
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.live: list[Sequence] = []
        """In order of admission."""

    def plan(self) -> list[Slice]:
        """Admit what fits, see that every live sequence has room, and choose the next pass."""
        self._admit()
        self._make_room()
        alone = len(self.live) == 1
        return plan(self.live, RowLimits(self.limits.max_rows) if alone else self.limits)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its cache, which may still serve prompts that begin alike."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.cache is not None:
            self.live.remove(sequence)
            self._release(sequence)

    def _admit(self) -> None:
        """Start waiting sequences, first come first served, while cache and slots last."""
        while self.waiting and len(self.live) < self.max_sequences:
            sequence = self.waiting[0]
            started = sequence.span is not None
            # At least one row of a new prompt's first span must be left to compute.
            held = sequence.tokens_to_recompute if started else max(0, len(sequence.prompt) - 2)
            cache = self._lend(sequence, sequence.keys[:held])
            if cache is None:
                return
            self.waiting.popleft()
            self.live.append(sequence)
            if started:
                _restore(sequence, cache)
            else:
                sequence.start(cache)

    def _lend(self, sequence: Sequence, prefix: tuple[int, ...]) -> KVCache | None:
        """A cache for all that it may ever need if the pool is roomy, else for what comes next."""
        live = ((other.keys, other.cache) for other in self.live if other.cache is not None)
        held = max(sequence.tokens_to_recompute, len(sequence.prompt))
        whole = sequence.cache_tokens
        soon = min(whole, held + sequence.scratch + _LENT_AHEAD)
        roomy = self.pool.tokens_lent + whole <= self.pool.max_tokens // 2
        return self.pool.acquire(whole if roomy else soon, prefix, live)

    def _make_room(self) -> None:
        """See that every live sequence's next rows fit its cache; the youngest gives way."""
        for sequence in list(self.live):
            cache = sequence.cache
            if cache is None:  # it gave way to an older one
                continue
            rows = sequence.rows_left
            most = min(rows, self.limits.max_rows) if sequence.splittable else rows
            needed = cache.length + most
            if needed <= cache.capacity:
                continue
            wanted = min(sequence.cache_tokens, max(needed, 2 * cache.capacity))
            while (larger := self.pool.grow(cache, wanted)) is None:
                youngest = self.live[-1]
                self._preempt(youngest)
                if youngest is sequence:
                    break
            else:
                sequence.cache = larger

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's cache away. It is the next to be admitted, and continues from here."""
        assert sequence.cache is not None
        logger.info("request %s gives way: the KV pool is full", sequence.id)
        self.live.remove(sequence)
        sequence.tokens_to_recompute = sequence.cache.length
        self._release(sequence)
        if sequence.suspended_span is not None:  # it was still recovering from the last time
            assert sequence.span is not None
            sequence.tokens_to_recompute = len(sequence.span.tokens)
            sequence.span, sequence.rows_done = sequence.suspended_span
            sequence.suspended_span = None
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.cache is not None
        self.pool.release(sequence.cache, sequence.keys[: sequence.cache.length])
        sequence.cache = None


def _restore(sequence: Sequence, cache: KVCache) -> None:
    """Let the tokens of the lost cache be computed again, except those in the new cache."""
    assert sequence.span is not None
    sequence.cache = cache
    lost, sequence.tokens_to_recompute = sequence.tokens_to_recompute, 0
    if cache.length < lost:
        sequence.suspended_span = sequence.span, sequence.rows_done
        held = sequence.all_tokens[:lost]
        sequence.span = causal_span("prefill", held, 0, keep=True)
        sequence.rows_done = cache.length


def plan(sequences: Seq[Sequence], limits: RowLimits) -> list[Slice]:
    """Choose what runs in the next pass, at most `max_rows` rows if that is possible.

    Four rules:

    - A span that cannot be split and has waited longest always runs, however large it is.
    - Newcomers are sequences without text. Those that have read their prompt go first, the others
      in the order in which they came. A pass reads at most `newcomer_rows` of all their prompts
      together. So a long prompt stops neither the sequences that have text nor those that have
      nearly read their prompt.
    - Among the others, the one that has waited longest goes first.
    - While there are newcomers, the others get few rows, so that first tokens do not wait for large
      passes: see `_rows_beside`.
    """
    longest_waiting = min(sequences, key=lambda s: s.last_step, default=None)
    newcomers = sorted((s for s in sequences if s.is_new), key=lambda s: s.splittable)
    others = sorted((s for s in sequences if not s.is_new), key=lambda s: s.last_step)

    def is_due(sequence: Sequence) -> bool:
        return sequence is longest_waiting and not sequence.splittable

    newcomer_rows = limits.newcomer_rows or limits.max_rows
    budgets = {True: newcomer_rows, False: _rows_beside(newcomers, newcomer_rows, limits)}
    slices: list[Slice] = []
    taken = 0
    for sequence in sorted(others + newcomers, key=lambda s: not is_due(s)):
        rows = sequence.rows_left
        free = min(budgets[sequence.is_new], limits.max_rows - taken)
        if sequence.splittable:
            rows = min(rows, free)
        elif rows > free and sequence is not longest_waiting:
            continue
        if rows > 0:
            done = sequence.rows_done
            slices.append(Slice(sequence, done, done + rows))
            taken += rows
            budgets[sequence.is_new] -= rows
    return slices


def _rows_beside(newcomers: Seq[Sequence], newcomer_rows: int, limits: RowLimits) -> int:
    """Rows for sequences with text: all if there are no newcomers, else few.

    Few is half of `efficient_rows`, or more if the pass would not reach `efficient_rows` otherwise.
    """
    if not newcomers:
        return limits.max_rows
    wanted = min(newcomer_rows, sum(s.rows_left for s in newcomers))
    few = max(limits.efficient_rows // 2, limits.efficient_rows - wanted)
    return min(limits.max_rows // 2, few)
