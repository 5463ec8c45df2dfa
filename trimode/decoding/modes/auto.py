"""`auto`: every step does what is expected to make most tokens a second; emits AR's tokens.

All lossless modes are one kind of pass. It has the newest committed token and a draft after it as
causal rows, and each of these may be followed by masks that propose what comes next:

- no draft, no masks: `ar`;
- masks, then a pass with the draft they made: `linear` (docs/design/0006);
- a draft and masks in one pass: `quadratic`;
- a draft that stood in the text before: lookup;
- a draft of the draft head, which is a small network beside the model: head.

So a request can change its mind at every pass.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from torch import Tensor

from trimode.decoding.auto.policy import (
    MAX_HEAD_NODES,
    MAX_TREE_MASKS,
    MAX_TREE_NODES,
    Plan,
    Policy,
)
from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed, Drafted
from trimode.decoding.modes.spec import ModeSpec
from trimode.decoding.span import Decoder, Keep, Logits, Span, SpanKind, causal_span
from trimode.decoding.speculation.draft_tree import NOTHING, ROOT, DraftTree
from trimode.decoding.speculation.head_draft import head_draft
from trimode.decoding.speculation.lookup import MAX_DRAFT, Lookup
from trimode.decoding.speculation.verify import (
    draft_from,
    draft_snapshot,
    first_token,
    follow,
    judged,
    proposals_of,
    verify_span,
)


def automatic(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Decode by the policy's plans until the engine closes the generator."""
    policy = context.policy
    assert policy is not None
    token, states = yield from first_token(prompt, context)
    run = _Run([*prompt, token], context, states)
    run.lookup.extend(prompt)
    run.lookup.extend((token,))
    step = _Step(Plan("ar", 0, 0.0))
    while True:
        if not step.own_draft:
            step = _plan_afresh(run, policy)
        places, accepted = yield from run.verify(step)
        if step.plan.kind == "head":
            assert policy.heads is not None
            policy.heads.judge(len(step.draft), sum(step.draft.chances), accepted)
        elif step.own_draft:
            policy.drafts.judge(places, accepted)
            policy.drafts.settle(step.plan.accepted, accepted)
        elif places:
            (policy.predictions if step.predicted else policy.lookups).judge(places, accepted)
        policy.committed(accepted + 1)
        step = _plan_after_draft(step.plan, run, policy)


@dataclass(frozen=True, slots=True)
class _Step:
    """What the next pass does."""

    plan: Plan
    draft: DraftTree = NOTHING
    masks: int = 0
    """Masks after each causal row."""
    own_draft: bool = False
    """Whether the model itself made the draft, in the pass before."""
    predicted: bool = False
    """Whether the draft comes from the request's prediction."""


def _plan_afresh(run: "_Run", policy: Policy) -> _Step:
    """The step of a request that has no draft of the model to verify."""
    found, predicted = run.lookup.draft(run.remaining - 1)
    room = run.context.draft_length(len(run.tokens))
    plan = policy.choose(lookup=len(found), masks=min(room, run.remaining), predicted=predicted)
    draft = NOTHING
    if plan.kind == "lookup":
        draft = DraftTree.line(found[: plan.size])
    elif plan.kind == "head":
        draft = run.guess(policy)
    masks = min(plan.size, room) if plan.kind in ("linear", "quadratic") else 0
    return _Step(plan, draft, masks, predicted=predicted and bool(draft))


def _plan_after_draft(plan: Plan, run: "_Run", policy: Policy) -> _Step:
    """The step that verifies what the last pass's masks proposed, as far as that is worth it."""
    draft = run.proposed
    if not draft:
        return _Step(plan)
    if plan.kind == "linear":
        draft = draft.first(policy.worth_checking(draft.chances, plan.size))
        if not draft:
            policy.drafts.settle(plan.accepted, 0)
        return _Step(plan, draft, own_draft=bool(draft))
    # A quadratic pass made the draft. Grow the next tree on it, or just verify it.
    room, hoped = run.context.draft_length(len(run.tokens)), plan.accepted
    plan = policy.choose(lookup=0, masks=room)
    if plan.kind != "quadratic":
        verify = Plan("linear", len(draft) + 1, plan.rate, hoped)
        return _Step(verify, draft, own_draft=True)
    return _Step(plan, draft.first(plan.size - 1), min(plan.size, room), own_draft=True)


@dataclass(slots=True)
class _Run:
    """A sequence between two passes: all its tokens but the newest are in the KV cache."""

    tokens: list[int]
    context: DecodingContext
    states: Tensor
    """Hidden states of the last pass, `[n, dim]`."""
    row: int = 0
    """Which of them chose the newest token."""
    received: float = field(default_factory=perf_counter)
    """When the last pass's logits came."""
    lookup: Lookup = field(init=False)
    proposed: DraftTree = NOTHING
    """What the last pass's masks proposed after the newest token."""

    def __post_init__(self) -> None:
        self.lookup = Lookup(self.context.prediction)

    @property
    def remaining(self) -> int:
        """Tokens that may still come."""
        return self.context.remaining(len(self.tokens))

    def guess(self, policy: Policy) -> DraftTree:
        """A draft of the draft head."""
        head, most = self.context.draft_head, min(MAX_HEAD_NODES, self.remaining - 1)
        assert head is not None
        return head_draft(
            head,
            self.states[self.row],
            self.tokens,
            most,
            self.context.sampler,
            policy.node_worth(),
        )

    def verify(
        self, step: _Step
    ) -> Generator[Span | Keep | Committed | Drafted, Logits | None, tuple[int, int]]:
        """One pass: check the draft, take what AR would emit.

        Returns:
            How many places of the draft are judged, and how many of them were right.
        """
        context, sampler = self.context, self.context.sampler
        plan, masks = step.plan, step.masks
        draft = step.draft.up_to(self.remaining - 1)
        if not draft and not masks:
            yield from self._decode(plan)
            return 0, 0
        start = len(self.tokens) - 1
        kind: SpanKind = "verify" if draft else "draft" if masks else "decode"
        span = verify_span(kind, self.tokens[-1], draft, start, masks, context)
        assert context.policy is not None
        context.policy.load.observe_decoder(plan.kind, perf_counter() - self.received)
        logits = yield span
        assert logits is not None
        self.received = perf_counter()
        emitted, path = follow(sampler, logits, start + 1, draft, self.tokens)
        rows = [0, *(1 + node for node in path)]
        yield Keep(rows)
        yield Committed(
            tokens=tuple(emitted),
            logprobs=sampler.logprobs(logits.rows, emitted, rows),
            drafted=len(draft) if draft or masks else None,
            new_cycle=not (step.own_draft and plan.kind == "linear"),
            plan=plan.kind,
            predicted=len(draft) if step.predicted else 0,
        )
        self.tokens += emitted
        self.states, self.row = logits.hidden, rows[-1]
        self.lookup.extend(emitted)
        node = path[-1] if path else ROOT
        self.proposed = NOTHING
        wanted = min(masks, self.remaining)
        if wanted > 1:
            proposals = proposals_of(node, draft, masks, wanted, logits, context)
            self.proposed = draft_from(*proposals, self.tokens, MAX_TREE_NODES, context)
            if context.show_drafts:
                yield draft_snapshot(len(self.tokens) - 1, emitted[-1], self.proposed)
        return judged(draft, path)

    def _decode(self, plan: Plan) -> Generator[Span | Committed, Logits | None, None]:
        """One pass without a draft, as `ar` makes it: in a full batch it is most of them."""
        sampler, place = self.context.sampler, len(self.tokens)
        asked = sampler.asks((0,))
        span = causal_span("decode", (self.tokens[-1],), place - 1, keep=True, **asked)
        assert self.context.policy is not None
        self.context.policy.load.observe_decoder(plan.kind, perf_counter() - self.received)
        logits = yield span
        assert logits is not None
        self.received = perf_counter()
        token = sampler.decide(logits, 0, place, self.tokens)
        self.tokens.append(token)
        yield Committed(
            tokens=(token,), logprobs=sampler.logprobs(logits.rows, (token,)), plan=plan.kind
        )
        self.states, self.row, self.proposed = logits.hidden, 0, NOTHING
        self.lookup.extend((token,))


def _scratch_rows(context: DecodingContext) -> int:
    tree = min(context.block_length, MAX_TREE_MASKS)
    drafted = max(MAX_DRAFT, 1 + MAX_HEAD_NODES)
    return max(context.block_length, tree * tree, drafted) + MAX_TREE_MASKS


SPEC = ModeSpec(
    summary="at each step, whatever makes most tokens a second on this machine",
    decode=automatic,
    scratch_rows=_scratch_rows,
    reads=frozenset(("block_length", "draft_tree", "prediction", "show_drafts")),
    needs_mask=False,
    lossless=True,
)
