"""One forward pass: spans of many sequences, whatever their modes, become one ragged pack."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from trimode.decoding import Logits
from trimode.engine.pictures import embeddings_at
from trimode.engine.sequence import Sequence
from trimode.model import AdapterRows, GivenRows, Runner, Segment


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `start..stop` of a sequence's pending span, to run in this pass."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        """Whether the span is computed with it."""
        assert self.sequence.span is not None
        return self.stop == len(self.sequence.span.tokens)

    @property
    def needs_logits(self) -> bool:
        """Whether likeliest tokens are not enough for its span."""
        assert self.sequence.span is not None
        return bool(self.sequence.span.logits)

    @property
    def adapter(self) -> bool | Tensor:
        """Whether its rows run with the adapter: all alike, or bool `[stop - start]`."""
        assert self.sequence.span is not None
        adapter = self.sequence.span.adapter
        return adapter[self.start : self.stop] if isinstance(adapter, Tensor) else adapter

    @property
    def uses_adapter(self) -> bool:
        """Whether some of its rows run with the adapter."""
        adapter = self.adapter
        return adapter if isinstance(adapter, bool) else bool(adapter.any())

    @property
    def context(self) -> int:
        """Tokens in its sequence's KV cache."""
        assert self.sequence.cache is not None
        return self.sequence.cache.length


def run(runner: Runner, slices: Seq[Slice]) -> list[Logits | None]:
    """One forward pass; returns the logits of each slice that completes its span, else None.

    Rows of spans that are kept whole enter their KV caches.
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
    hidden = runner.run(
        torch.tensor(tokens, device=runner.device),
        torch.tensor(positions, device=runner.device),
        segments,
        _adapter_rows(slices, runner.device),
        _given_rows(slices, segments, positions, runner.device),
    )
    parts = [hidden[s.start : s.stop] for s in segments]
    return _deliver(runner, slices, parts)


def _adapter_rows(slices: Seq[Slice], device: str) -> AdapterRows:
    """Rows of the pass whose span has the adapter on."""
    if not any(part.uses_adapter for part in slices):
        return None
    rows = torch.cat([torch.as_tensor(p.adapter).expand(p.stop - p.start) for p in slices])
    return slice(None) if rows.all() else rows.nonzero()[:, 0].to(device)


def _given_rows(
    slices: Seq[Slice], segments: Seq[Segment], positions: Seq[int], device: str
) -> GivenRows | None:
    """Rows of the pass that stand for pictures."""
    rows: list[Tensor] = []
    embeddings: list[Tensor] = []
    for part, segment in zip(slices, segments, strict=True):
        found = embeddings_at(part.sequence.images, positions[segment.start : segment.stop])
        if found is not None:
            rows.append(segment.start + found[0])
            embeddings.append(found[1])
    if not rows:
        return None
    return GivenRows(torch.cat(rows).to(device), torch.cat(embeddings))


def _deliver(runner: Runner, slices: Seq[Slice], parts: Seq[Tensor]) -> list[Logits | None]:
    """Run the head once for all hidden states wanted, then note what is done.

    Nothing is noted before the head has run, so a pass that fails can be run again.
    """
    fresh = [_wanted(part, hidden) for part, hidden in zip(slices, parts, strict=True)]
    wanted = [
        _joined([*part.sequence.partial_hidden, rows])
        for part, rows in zip(slices, fresh, strict=True)
        if part.completes
    ]
    # If some rows need logits, all get them: the head's weights are read once.
    all_logits = any(part.completes and part.needs_logits for part in slices)
    found = iter(_computed(runner, wanted, all_logits=all_logits))
    results: list[Logits | None] = []
    for part, hidden, rows in zip(slices, parts, fresh, strict=True):
        results.append(Logits(*next(found), _head(runner, hidden)) if part.completes else None)
        _note(part, rows)
    return results


def _computed(
    runner: Runner, wanted: Seq[Tensor], *, all_logits: bool
) -> list[tuple[list[int] | None, Tensor, Tensor]]:
    """Likeliest tokens, logits and hidden states of each span, from those of its wanted rows."""
    if not wanted:
        return []
    states, counts = _joined(wanted), [len(each) for each in wanted]
    tokens = None if all_logits else runner.likeliest(states)
    if tokens is None:
        logits = runner.logits(states).split(counts)
        return [(None, rows, each) for rows, each in zip(logits, wanted, strict=True)]
    ends = accumulate(counts)
    return [
        (tokens[end - len(each) : end], each[:0], each)
        for end, each in zip(ends, wanted, strict=True)
    ]


def _joined(parts: Seq[Tensor]) -> Tensor:
    # After a pass the caches hold weights, so each call of PyTorch costs tens of microseconds. The
    # usual pass has one row, and is spared those that would copy it, here and in `_wanted`.
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _wanted(part: Slice, hidden: Tensor) -> Tensor:
    """Of a slice's hidden states, those that its span wants something of."""
    assert part.sequence.span is not None
    wanted = part.sequence.span.wanted
    rows = [row - part.start for row in wanted if part.start <= row < part.stop]
    return hidden if rows == list(range(len(hidden))) else hidden[rows]


def _note(part: Slice, rows: Tensor) -> None:
    """Keep the rows of a slice, and its hidden states `rows` until its span is complete."""
    sequence = part.sequence
    span, cache = sequence.span, sequence.cache
    assert span is not None
    assert cache is not None
    if span.keep:
        cache.keep(range(part.stop - part.start))
    if part.completes:
        sequence.partial_hidden.clear()
    else:
        sequence.partial_hidden.append(rows)
    sequence.rows_done = part.stop


def _head(runner: Runner, hidden: Tensor) -> Callable[[Seq[int]], tuple[Tensor, Tensor]]:
    def head(rows: Seq[int]) -> tuple[Tensor, Tensor]:
        states = hidden[list(rows)]
        return runner.logits(states), states

    return head
