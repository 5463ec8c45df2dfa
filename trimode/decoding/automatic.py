"""`auto`: every step does what is expected to make most tokens a second; emits AR's tokens.

All lossless modes are one kind of pass. Its causal rows are the newest committed token and a draft
behind it; each may be followed by masks that propose what comes after. No draft and no masks is
`ar`; masks, then the draft they made, is `linear` (docs/design/0006); both at once is `quadratic`;
a draft that stood in the text before is lookup. So a request can change its mind at every pass.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

from trimode.decoding.context import DecodingContext
from trimode.decoding.draft_tree import NOTHING, ROOT, DraftTree
from trimode.decoding.drafting import (
    draft_from,
    draft_snapshot,
    first_token,
    proposals_of,
    verify_span,
)
from trimode.decoding.events import Committed, Drafted
from trimode.decoding.lookup import Lookup
from trimode.decoding.policy import MAX_TREE_NODES, Plan
from trimode.decoding.span import Decoder, Keep, Logits, Span, SpanKind


def automatic(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Decode by the policy's plans until the engine closes the generator."""
    policy = context.policy
    assert policy is not None
    token = yield from first_token(prompt, context)
    run = _Run([*prompt, token], context)
    run.lookup.extend(prompt)
    run.lookup.extend((token,))
    plan, own, draft = Plan("ar", 0, 0.0), False, NOTHING
    while True:
        if not own:  # nothing drafted by the model waits to be verified
            found, predicted = run.lookup.draft(run.remaining - 1)
            masks = min(context.draft_length(len(run.tokens)), run.remaining)
            plan = policy.choose(lookup=len(found), masks=masks)
            draft = DraftTree.line(found[: plan.size]) if plan.kind == "lookup" else NOTHING
            run.predicted = predicted and bool(draft)
        masks = plan.size if plan.kind == "quadratic" or (plan.kind == "linear" and not own) else 0
        masks = min(masks, context.draft_length(len(run.tokens)))
        accepted, judged = yield from run.verify(plan, draft, masks, own=own)
        if judged:
            (policy.drafts if own else policy.lookups).judge(judged, accepted)
        policy.committed(accepted + 1)
        draft = run.proposed
        own = bool(draft)
        if own and plan.kind == "linear":
            draft = draft.first(policy.worth_checking(draft.chances, plan.size))
            own = bool(draft)
        elif own:  # the tree's own draft: grow the next tree on it, or just verify it
            plan = policy.choose(lookup=0, masks=context.draft_length(len(run.tokens)))
            if plan.kind == "quadratic":
                draft = draft.first(plan.size - 1)
            else:
                plan = Plan("linear", len(draft) + 1, plan.rate)


@dataclass(slots=True)
class _Run:
    """A sequence between two passes: all its tokens but the newest are in the KV cache."""

    tokens: list[int]
    context: DecodingContext
    lookup: Lookup = field(init=False)
    proposed: DraftTree = NOTHING
    """What the last pass's masks proposed behind the newest token."""
    predicted: bool = False
    """Whether the draft that is checked comes from the request's prediction."""

    def __post_init__(self) -> None:
        self.lookup = Lookup(self.context.prediction)

    @property
    def remaining(self) -> int:
        """Tokens that may still come."""
        return self.context.remaining(len(self.tokens))

    def verify(
        self, plan: Plan, draft: DraftTree, masks: int, *, own: bool
    ) -> Generator[Span | Keep | Committed | Drafted, Logits | None, tuple[int, int]]:
        """One pass: check the draft, take what AR would emit.

        Returns:
            How many places of the draft were right, and how many are judged by that.
        """
        context, sampler = self.context, self.context.sampler
        draft = draft.up_to(self.remaining - 1)
        start = len(self.tokens) - 1
        kind: SpanKind = "verify" if draft else "draft" if masks else "decode"
        logits = yield verify_span(kind, self.tokens[-1], draft, start, masks, context)
        assert logits is not None
        emitted, path = sampler.follow(logits.rows[: 1 + len(draft)], start + 1, draft, self.tokens)
        rows = [0, *(1 + node for node in path)]
        yield Keep(rows)
        yield Committed(
            tokens=tuple(emitted),
            logprobs=sampler.logprobs(logits.rows, emitted, rows),
            drafted=len(draft) if draft or masks else None,
            new_cycle=not (own and plan.kind == "linear"),
            plan=plan.kind,
            predicted=len(draft) if self.predicted else 0,
        )
        self.predicted = False
        self.tokens += emitted
        self.lookup.extend(emitted)
        self.proposed = NOTHING
        node = path[-1] if path else ROOT
        wanted = min(masks, self.remaining)
        if wanted > 1:
            proposals = proposals_of(node, draft, masks, wanted, logits, context)
            self.proposed = draft_from(
                proposals, len(self.tokens), self.tokens, MAX_TREE_NODES, context
            )
            if context.options.show_drafts:
                yield draft_snapshot(len(self.tokens) - 1, emitted[-1], self.proposed)
        # Behind a leaf nothing was drafted that could have been wrong.
        return len(path), len(path) + draft.has_children(node)
