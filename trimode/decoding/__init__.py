"""The decoding modes: generators that yield spans and are sent logits."""

from trimode.decoding.commit_rules import BlockView, CommitScorer
from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed, Drafted, Event, TokenLogprob
from trimode.decoding.modes import DECODERS, resolve_auto, scratch_rows
from trimode.decoding.sampling import Sampler
from trimode.decoding.span import Decoder, Keep, Logits, Span, SpanKind
from trimode.decoding.stats import Stats

__all__ = [
    "DECODERS",
    "BlockView",
    "CommitScorer",
    "Committed",
    "Decoder",
    "DecodingContext",
    "Drafted",
    "Event",
    "Keep",
    "Logits",
    "Sampler",
    "Span",
    "SpanKind",
    "Stats",
    "TokenLogprob",
    "resolve_auto",
    "scratch_rows",
]
