"""The unit of work: a span is some tokens of one sequence for one forward pass.

A decoder is a generator that yields `Span`, `Keep` and events, and is sent `Logits` for each
span. It knows nothing of batching, devices or other sequences.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict

import torch
from torch import Tensor

from trimode.decoding.events import Event

SpanKind = Literal["prefill", "decode", "denoise", "draft", "verify", "close"]
"""What a pass is for; used for accounting only."""

Visibility = Literal["causal", "block"] | Tensor
"""Which rows of the span a row sees; all rows see the sequence's whole KV cache.

`causal`: itself and earlier rows; `block`: every row; a bool tensor `[n, n]`: row i sees row j if
`visibility[i, j]`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows of one sequence that go through the model together."""

    kind: SpanKind
    tokens: Sequence[int]
    """Token ids `[n]`, masks included."""
    positions: Sequence[int]
    """Absolute positions `[n]`; they may repeat (branches of a draft tree)."""
    visibility: Visibility = "causal"
    adapter: bool | Tensor = False
    """Whether the draft adapter is on, for all rows or row by row (bool `[n]`)."""
    keep: bool = False
    """True: all rows enter the KV cache. False: a `Keep` that follows may pick rows."""
    likeliest: Sequence[int] = ()
    """Rows of which the likeliest token is enough; they come before those of `logits`."""
    logits: Sequence[int] = ()
    """Rows whose logits are wanted at once."""

    @property
    def wanted(self) -> list[int]:
        """Both kinds of rows."""
        return [*self.likeliest, *self.logits]


@dataclass(frozen=True, slots=True)
class Keep:
    """Rows of the span just run that enter the KV cache, in this order; the rest are dropped."""

    rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class Logits:
    """What a span returns."""

    likeliest: Sequence[int] | None
    """Tokens of the span's `likeliest` rows, the mask left out; None: `rows` begins with them."""
    rows: Tensor
    """fp32 logits of the rows asked for, `[n, vocab]`."""
    hidden: Tensor
    """States after the final norm of all wanted rows, `[len(span.wanted), dim]`."""
    head: Callable[[Sequence[int]], tuple[Tensor, Tensor]]
    """Logits `[m, vocab]` and hidden states `[m, dim]` of further rows of the same span, computed
    on demand."""


class Asked(TypedDict):
    """Rows of a span, by what is wanted of them."""

    likeliest: Sequence[int]
    logits: Sequence[int]


Decoder = Generator[Span | Keep | Event, Logits | None, None]


def causal_span(
    kind: SpanKind,
    tokens: Sequence[int],
    start: int,
    *,
    keep: bool,
    likeliest: Sequence[int] = (),
    logits: Sequence[int] = (),
) -> Span:
    """A span of consecutive tokens that begins at absolute position `start`."""
    return Span(
        kind=kind,
        tokens=tokens,
        positions=range(start, start + len(tokens)),
        keep=keep,
        likeliest=likeliest,
        logits=logits,
    )


@lru_cache(maxsize=256)
def led_visibility(lead: int, *spare: int, masks: int) -> tuple[Tensor, Tensor]:
    """Who sees whom in a pass of `lead` known tokens and the masks that follow them.

    A known token sees those up to itself. `masks` masks stand after all known tokens, and as many
    after the first n, for each n of `spare`. A mask sees the tokens that it stands after, and the
    masks of its group.

    Returns:
        visibility bool `[n, n]` and the rows that are masks, bool `[n]`,
        n = lead + masks * (1 + len(spare)).
    """
    rows = torch.arange(lead + masks * (1 + len(spare)))
    is_mask = rows >= lead
    visibility = torch.ones(len(rows), len(rows), dtype=torch.bool).tril() & ~is_mask
    for group, end in enumerate((lead, *spare)):
        own = slice(lead + group * masks, lead + (group + 1) * masks)
        visibility[own, own] = True
        visibility[own, end:lead] = False
    return visibility, is_mask
