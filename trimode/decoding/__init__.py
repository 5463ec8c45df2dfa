"""The decoding modes: generators that yield spans and are sent logits."""

from trimode.config import GenerationOptions
from trimode.decoding.commit_rules import BlockView, CommitScorer
from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed, Drafted, Event, TokenLogprob
from trimode.decoding.modes import DECODERS, scratch_rows
from trimode.decoding.policy import Acceptance, CostCurve, Load, Plan, Policy, break_even
from trimode.decoding.sampling import Sampler
from trimode.decoding.span import Decoder, Keep, Logits, Span, SpanKind, causal_span
from trimode.decoding.stats import Stats


def inherited(options: GenerationOptions, mode: str) -> GenerationOptions:
    """The options without those that a mode does not read."""
    del mode  # a stand-in: every mode is given all of them
    return options


__all__ = [
    "DECODERS",
    "Acceptance",
    "CostCurve",
    "Load",
    "Plan",
    "Policy",
    "break_even",
    "causal_span",
    "inherited",
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
    "scratch_rows",
]
