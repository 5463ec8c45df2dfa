"""`auto`: every step does what is expected to make most tokens a second; emits AR's tokens.

All lossless modes are one kind of pass. Its causal rows are the newest committed token and a draft
behind it; each may be followed by masks that propose what comes after. No draft and no masks is
`ar`; masks, then the draft they made, is `linear` (docs/design/0006); both at once is `quadratic`;
a draft that stood in the text before is lookup. So a request can change its mind at every pass.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed, Drafted
from trimode.decoding.lookup import Lookup
from trimode.decoding.policy import Plan
from trimode.decoding.quadratic import draft_snapshot, tree_span
from trimode.decoding.span import (
    Decoder,
    Keep,
    Logits,
    Span,
    SpanKind,
    causal_span,
)


def automatic(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Decode by the policy's plans until the engine closes the generator."""
    policy = context.policy
    assert policy is not None
    if len(prompt) > 1:
        yield causal_span("prefill", prompt[:-1], 0, keep=True, logits=())
    run = _Run(list(prompt), context)
    run.lookup.extend(prompt)
    plan, own, draft = Plan("ar", 0, 0.0), False, list[int]()
    while True:
        if not own:  # nothing drafted by the model waits to be verified
            found, predicted = run.lookup.draft(run.remaining - 1)
            masks = min(context.draft_length(len(run.tokens)), run.remaining)
            plan = policy.choose(lookup=len(found), masks=masks)
            draft = found[: plan.size] if plan.kind == "lookup" else []
            run.predicted = predicted and bool(draft)
        masks = plan.size if plan.kind == "quadratic" or (plan.kind == "linear" and not own) else 0
        masks = min(masks, context.draft_length(len(run.tokens)))
        accepted = yield from run.verify(plan, draft, masks, own=own)
        if draft:
            judge = policy.drafts if own else policy.lookups
            judge.judge(len(draft), accepted)
        policy.committed(accepted + 1)
        draft, sure = run.proposals, run.confidences
        own = bool(draft)
        if own and plan.kind == "linear":
            draft = draft[: policy.worth_checking(sure, plan.size)]
            own = bool(draft)
        elif own:  # the tree's own draft: grow the next tree on it, or just verify it
            plan = policy.choose(lookup=0, masks=context.draft_length(len(run.tokens)))
            if plan.kind != "quadratic":
                plan = Plan("linear", len(draft) + 1, plan.rate)


@dataclass(slots=True)
class _Run:
    """A sequence between two passes: all its tokens but the newest are in the KV cache."""

    tokens: list[int]
    context: DecodingContext
    lookup: Lookup = field(init=False)
    proposals: list[int] = field(default_factory=list)
    """What the last pass's masks proposed behind the newest token."""
    confidences: list[float] = field(default_factory=list)
    predicted: bool = False
    """Whether the draft that is checked comes from the request's prediction."""

    def __post_init__(self) -> None:
        self.lookup = Lookup(self.context.prediction)

    @property
    def remaining(self) -> int:
        """Tokens that may still come."""
        return self.context.remaining(len(self.tokens))

    def verify(
        self, plan: Plan, draft: Sequence[int], masks: int, *, own: bool
    ) -> Generator[Span | Keep | Committed | Drafted, Logits | None, int]:
        """One pass: check the draft, take what AR would emit; returns how much of it was right."""
        context, sampler = self.context, self.context.sampler
        first = len(self.tokens) == context.prompt_length
        draft = draft[: self.remaining - 1]
        causal = [self.tokens[-1], *draft]
        start = len(self.tokens) - 1
        kind: SpanKind = "verify" if draft else "draft" if masks else "decode"
        if first:
            kind = "prefill"
        if masks:
            logits = yield tree_span(kind, causal, start, masks, context)
        else:
            rows = range(len(causal))
            logits = yield causal_span(kind, causal, start, keep=False, logits=rows)
        assert logits is not None
        emitted = sampler.verify(logits.rows, start + 1, draft, self.tokens)
        accepted = len(emitted) - 1
        yield Keep([j * (masks + 1) for j in range(accepted + 1)])
        speculating = bool(draft or masks) and not (first and plan.kind == "quadratic")
        yield Committed(
            tokens=tuple(emitted),
            logprobs=sampler.logprobs(logits.rows[: len(emitted)], emitted),
            drafted=len(draft) if speculating else None,
            new_cycle=not (own and plan.kind == "linear"),
            plan=plan.kind,
            predicted=len(draft) if self.predicted else 0,
        )
        self.predicted = False
        self.tokens += emitted
        self.lookup.extend(emitted)
        self.proposals, self.confidences = [], []
        wanted = min(masks, self.remaining)
        if wanted > 1:
            group = accepted * (masks + 1)
            rows = logits.head(range(group + 2, group + 1 + wanted))
            self._propose(rows)
            if context.options.show_drafts:
                yield draft_snapshot(len(self.tokens) - 1, [emitted[-1], *self.proposals], rows)
        return accepted

    def _propose(self, rows: Tensor) -> None:
        """Tokens behind the newest one, from logits `[n, vocab]`, and the chance of each."""
        sampler = self.context.sampler
        tokens = sampler.sample(rows, len(self.tokens), self.tokens)
        chances = sampler.exclude_mask(rows).softmax(-1).gather(-1, tokens[:, None])[:, 0]
        self.proposals, self.confidences = tokens.tolist(), chances.tolist()
