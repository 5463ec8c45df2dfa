"""Packing: spans of many sequences, whatever their modes, become one ragged forward pass."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from trimode.decoding import Logits
from trimode.engine.sequence import Sequence
from trimode.model import Segment, Transformer
from trimode.model.adapter import AdapterRows


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `start..stop` of a sequence's pending span, to run in this pass."""

    sequence: Sequence
    start: int
    stop: int


def plan(
    sequences: Seq[Sequence], max_rows: int, efficient_rows: int, newcomer_rows: int
) -> list[Slice]:
    """Choose what runs in the next pass, at most `max_rows` rows where that is possible.

    While sequences without text are there, a pass has few rows of those that have some: half of
    `efficient_rows`, or what fills it up to them (with fewer a pass costs more a row than it need).
    A newcomer's first text does not wait for large passes of others. A long prompt, in pieces of
    `newcomer_rows` for all newcomers together, stops neither those who have text nor who has nearly
    read a prompt. Among newcomers those that have read their prompt go first, then who came first;
    among others who has waited longest.

    A span that cannot be split and has waited longest always runs, however large it is.
    """
    longest = min(sequences, key=lambda s: s.last_step, default=None)
    new = sorted((s for s in sequences if _is_new(s)), key=lambda s: s.splittable)
    running = sorted((s for s in sequences if not _is_new(s)), key=lambda s: s.last_step)
    wanted = min(newcomer_rows, sum(s.rows_left for s in new))
    few = max(efficient_rows // 2, efficient_rows - wanted)
    beside = min(max_rows // 2, few) if new else max_rows
    budgets = {True: newcomer_rows, False: beside}
    slices: list[Slice] = []
    taken = 0
    for sequence in sorted(running + new, key=lambda s: s is not longest or s.splittable):
        newcomer = _is_new(sequence)
        free = min(budgets[newcomer], max_rows - taken)
        rows = sequence.rows_left
        if sequence.splittable:
            rows = min(rows, free)
        elif rows > free and sequence is not longest:
            continue
        if rows > 0:
            done = sequence.rows_done
            slices.append(Slice(sequence, done, done + rows))
            taken += rows
            budgets[newcomer] -= rows
    return slices


def _is_new(sequence: Sequence) -> bool:
    """Whether it reads its prompt (perhaps again) or has no text yet."""
    return sequence.splittable or not sequence.tokens


def run(model: Transformer, slices: Seq[Slice]) -> list[Logits | None]:
    """One forward pass; returns the logits of each slice that completes its span, else None.

    Rows of spans that are kept whole enter their caches.
    """
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    for part in slices:
        span, cache = part.sequence.span, part.sequence.cache
        assert span is not None
        assert cache is not None
        start = len(tokens)
        tokens.extend(span.tokens[part.start : part.stop])
        positions.extend(span.positions[part.start : part.stop])
        segments.append(Segment(start, len(tokens), cache, span.visibility))
    hidden = model.run(
        torch.tensor(tokens, device=model.device),
        torch.tensor(positions, device=model.device),
        segments,
        _adapter_rows(slices, model.device),
    )
    parts = [hidden[s.start : s.stop] for s in segments]
    return _deliver(model, slices, parts)


def _adapter_rows(slices: Seq[Slice], device: str) -> AdapterRows:
    """Rows of the pass whose span has the adapter on."""
    flags = []
    for part in slices:
        span = part.sequence.span
        assert span is not None
        if isinstance(span.adapter, Tensor):
            flags.append(span.adapter[part.start : part.stop])
        else:
            flags.append(torch.full((part.stop - part.start,), span.adapter))
    rows = torch.cat(flags)
    if not rows.any():
        return None
    return slice(None) if rows.all() else rows.nonzero()[:, 0].to(device)


def _deliver(model: Transformer, slices: Seq[Slice], parts: Seq[Tensor]) -> list[Logits | None]:
    """Keep rows, collect the hidden states wanted, and run the head once for all of them."""
    wanted: list[Tensor] = []
    for part, hidden in zip(slices, parts, strict=True):
        sequence = part.sequence
        span, cache = sequence.span, sequence.cache
        assert span is not None
        assert cache is not None
        if span.keep:
            cache.keep(range(part.stop - part.start))
        rows = [row - part.start for row in span.logits if part.start <= row < part.stop]
        sequence.partial_hidden.append(hidden[rows])
        sequence.rows_done = part.stop
        if sequence.rows_left == 0:
            wanted.append(torch.cat(sequence.partial_hidden))
            sequence.partial_hidden.clear()
    if not wanted:
        return [None] * len(slices)
    logits = iter(model.logits(torch.cat(wanted)).split([len(w) for w in wanted]))
    return [
        Logits(next(logits), _head(model, hidden)) if part.sequence.rows_left == 0 else None
        for part, hidden in zip(slices, parts, strict=True)
    ]


def _head(model: Transformer, hidden: Tensor) -> Callable[[Seq[int]], Tensor]:
    def head(rows: Seq[int]) -> Tensor:
        return model.logits(hidden[list(rows)])

    return head
