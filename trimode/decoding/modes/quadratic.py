"""Quadratic self-speculation: one pass verifies the draft and drafts every possible continuation.

The rows of a pass are groups: draft token j, then masks for the positions after it. Whatever
prefix of the draft is accepted, the group at its end already holds the next draft. Source:
section 3.4 and appendix C of arXiv 2607.05722, after TiDAR (arXiv 2511.08923). Differs from
NVIDIA's unreleased code: any token budget, any number of sequences, sampling, and the head is
computed for one group's masks instead of all.
"""

from collections.abc import Sequence

from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed
from trimode.decoding.modes.spec import ModeSpec
from trimode.decoding.span import Decoder, Keep, SpanKind, causal_span
from trimode.decoding.speculation.draft_tree import ROOT, DraftTree
from trimode.decoding.speculation.verify import (
    draft_from,
    draft_snapshot,
    follow,
    judged,
    proposals_of,
    verify_span,
)

_TREE_MASKS = 10
"""Most masks after a node of a tree. A path hardly ever gets further than this, so the other rows
hold more nodes instead. There are B (B + 1) rows in all, as many as in a line of B groups."""


def _shape(length: int, context: DecodingContext) -> tuple[int, int]:
    """Masks after each node, and nodes, of a pass for a block of this length."""
    masks = min(length, _TREE_MASKS) if context.draft_tree else length
    return masks, length * (length + 1) // (masks + 1) - 1


def quadratic_speculation(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Verify and draft in one pass until the engine closes the generator; emits AR's tokens."""
    sampler = context.sampler
    tokens = list(prompt)
    if len(tokens) > 1:
        yield causal_span("prefill", tokens[:-1], 0, keep=True)

    # The prompt's last token is already verified: its masks make the first draft.
    draft = DraftTree()
    kind: SpanKind = "prefill"
    while True:
        start = len(tokens) - 1
        masks, nodes = _shape(context.draft_length(start + 1), context)
        logits = yield verify_span(kind, tokens[-1], draft, start, masks, context)
        assert logits is not None
        accepted, path = follow(sampler, logits, start + 1, draft, tokens)
        rows = [0, *(1 + node for node in path)]
        yield Keep(rows)
        if context.policy is not None and kind != "prefill":
            context.policy.drafts.judge(*judged(draft, path))
        yield Committed(
            tokens=tuple(accepted),
            logprobs=sampler.logprobs(logits.rows, accepted, rows),
            drafted=None if kind == "prefill" else len(draft),
        )
        tokens += accepted
        kind = "verify"

        # The first mask of the accepted node stands where the verifier's own token now is.
        node = path[-1] if path else ROOT
        wanted = min(masks, context.remaining(len(tokens)))
        proposals = proposals_of(node, draft, masks, wanted, logits, context)
        draft = draft_from(*proposals, tokens, nodes, context)
        if context.show_drafts:
            yield draft_snapshot(len(tokens) - 1, tokens[-1], draft)


def _paying_block(context: DecodingContext) -> int:
    policy, most = context.policy, context.block_length
    return most if policy is None else policy.paying_size("quadratic", most)


SPEC = ModeSpec(
    summary="verifies a draft and makes the next one in the same pass",
    decode=quadratic_speculation,
    scratch_rows=lambda context: context.block_length * (context.block_length + 1),
    reads=frozenset(("block_length", "draft_tree", "show_drafts")),
    needs_mask=True,
    lossless=True,
    paying_block=_paying_block,
)
