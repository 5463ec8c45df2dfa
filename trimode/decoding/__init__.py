"""The decoding modes: generators that yield spans and are sent logits."""

from trimode.decoding.auto.acceptance import Acceptance, DraftRecord
from trimode.decoding.auto.costs import CostCurve, break_even
from trimode.decoding.auto.policy import BatchLoad, Plan, Policy
from trimode.decoding.context import (
    BlockView,
    CommitScorer,
    DecodingContext,
    DraftHead,
    MarkovHead,
)
from trimode.decoding.denoising.commit_rules import RULES
from trimode.decoding.events import Committed, Drafted, Event, TokenLogprob
from trimode.decoding.modes.registry import (
    LOSSLESS_MODES,
    MODE_SPECS,
    inherited,
    modes_reading,
    refuse_unread,
)
from trimode.decoding.modes.spec import ModeSpec
from trimode.decoding.sampling import Sampler
from trimode.decoding.span import Decoder, Keep, Logits, Span, SpanKind, causal_span
from trimode.decoding.stats import Stats

__all__ = [
    "LOSSLESS_MODES",
    "MODE_SPECS",
    "RULES",
    "Acceptance",
    "BatchLoad",
    "BlockView",
    "CommitScorer",
    "Committed",
    "CostCurve",
    "Decoder",
    "DecodingContext",
    "DraftHead",
    "DraftRecord",
    "Drafted",
    "Event",
    "Keep",
    "Logits",
    "MarkovHead",
    "ModeSpec",
    "Plan",
    "Policy",
    "Sampler",
    "Span",
    "SpanKind",
    "Stats",
    "TokenLogprob",
    "break_even",
    "causal_span",
    "inherited",
    "modes_reading",
    "refuse_unread",
]
