"""Quadratic self-speculation: one pass verifies the draft and drafts every possible continuation.

The rows of a pass are groups: draft token j, then masks for the positions after it. Whatever
prefix of the draft is accepted, the group at its end already holds the next draft. Source:
section 3.4 and appendix C of arXiv 2607.05722, after TiDAR (arXiv 2511.08923). Differs from
NVIDIA's unreleased code: any token budget, any number of sequences, sampling, and the head is
computed for one group's masks instead of all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed, Drafted, TokenState
from trimode.decoding.span import Decoder, Keep, Span, SpanKind, causal_span, tree_visibility


def quadratic_speculation(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Verify and draft in one pass until the engine closes the generator; emits AR's tokens."""
    sampler = context.sampler
    tokens = list(prompt)
    if len(tokens) > 1:
        yield causal_span("prefill", tokens[:-1], 0, keep=True, logits=())

    # The prompt's last token as a draft that is already verified: its group is the first draft.
    draft = tokens[-1:]
    start = len(tokens) - 1
    kind: SpanKind = "prefill"
    while True:
        masks = context.draft_length(start + 1)
        logits = yield tree_span(kind, draft, start, masks, context)
        assert logits is not None
        history = tokens if kind == "prefill" else [*tokens, draft[0]]
        accepted = sampler.verify(logits.rows, start + 1, draft[1:], history)
        matched = len(accepted) - 1
        yield Keep([j * (masks + 1) for j in range(matched + 1)])
        yield Committed(
            tokens=tuple(accepted),
            logprobs=sampler.logprobs(logits.rows[: len(accepted)], accepted),
            drafted=None if kind == "prefill" else len(draft) - 1,
        )
        tokens = [*history, *accepted[:-1]]

        # The first mask of the accepted group stands where the verifier's own token now is.
        start = len(tokens)
        group = matched * (masks + 1)
        wanted = min(masks, context.remaining(start))
        rows = logits.head(range(group + 2, group + 1 + wanted))
        draft = [accepted[-1], *sampler.sample(rows, start + 1, [*tokens, accepted[-1]]).tolist()]
        kind = "verify"
        if context.options.show_drafts:
            yield draft_snapshot(start, draft, rows)


def tree_span(
    kind: SpanKind, draft: Sequence[int], start: int, masks: int, context: DecodingContext
) -> Span:
    """Each draft token with `masks` masks behind it; logits of the draft tokens' rows.

    `start`: absolute position of the first draft token.
    """
    visibility, is_mask = tree_visibility(len(draft), masks)
    last = context.context_length - 1  # later groups may reach past it
    return Span(
        kind=kind,
        tokens=[t for token in draft for t in (token, *[context.mask_token_id] * masks)],
        positions=[min(start + j + i, last) for j in range(len(draft)) for i in range(masks + 1)],
        visibility=visibility,
        adapter=is_mask & context.draft_adapter,
        logits=range(0, len(is_mask), masks + 1),
    )


def draft_snapshot(start: int, draft: Sequence[int], rows: Tensor) -> Drafted:
    """The new draft as a user may see it; its first token is verified already."""
    drafted = torch.tensor(draft[1:], dtype=torch.long, device=rows.device)
    sure = rows.softmax(-1).gather(-1, drafted[:, None])[:, 0].tolist() if len(drafted) else []
    new: tuple[TokenState, ...] = ("new",) * len(sure)
    return Drafted(
        start=start,
        tokens=tuple(draft),
        confidences=(1.0, *sure),
        states=("kept", *new),
    )
