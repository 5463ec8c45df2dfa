"""Linear self-speculation: the denoiser drafts a block, one causal pass verifies it.

Source: Nemotron-Labs-Diffusion, `linear_spec_generate` of the public checkpoint and section 3.3 of
arXiv 2607.05722. Differs from it: any number of sequences at once (the engine packs them), the
token budget is exact, drafts share the verifier's sampling noise, and a forced end-of-thinking
token is part of the output and of the cache.

In NLD's form the last committed token, the seed, opens the block and is seen both ways. With
`seed_block` off it goes ahead of the block: its row is causal and without the adapter, as in AR
decoding, so the pass that drafts also yields the next token for certain. See docs/design/0006.
"""

from collections.abc import Generator, Sequence

from trimode.decoding.block import denoise, open_block
from trimode.decoding.context import DecodingContext
from trimode.decoding.draft_tree import DraftTree
from trimode.decoding.drafting import draft_from, draft_snapshot, first_token, verify_span
from trimode.decoding.events import Committed, Drafted
from trimode.decoding.span import Decoder, Keep, Logits, Span, led_visibility

Drafting = Generator[Span | Keep | Committed | Drafted, Logits | None, tuple[int, DraftTree, int]]


def linear_speculation(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Draft and verify until the engine closes the generator; emits exactly AR's tokens."""
    sampler = context.sampler
    tokens = list(prompt)
    seed = yield from first_token(tokens, context)
    several_passes = bool(context.options.threshold)
    while True:
        # The seed is known but not yet in the KV cache; the root is the token to verify behind.
        if context.seed_drafts:
            root, draft, revisions = yield from _draft_block(seed, tokens, context, ahead=False)
        else:
            tokens.append(seed)
            if several_passes:
                root, draft, revisions = yield from _draft_block(seed, tokens, context, ahead=True)
            else:
                root, draft, revisions = yield from _draft_ahead(seed, tokens, context)
        start = len(tokens)
        tokens.append(root)
        # Rows beyond the budget would verify tokens that can never be emitted.
        draft = draft.up_to(context.remaining(start + 1) - 1)
        logits = yield verify_span("verify", root, draft, start, 0, context)
        assert logits is not None
        accepted, path = sampler.follow(logits.rows, start + 1, draft, tokens)
        rows = [0, *(1 + node for node in path)]
        yield Keep(rows)
        yield Committed(
            tokens=tuple(accepted),
            logprobs=sampler.logprobs(logits.rows, accepted, rows),
            drafted=len(draft),
            new_cycle=context.seed_drafts,
            revisions=revisions,
        )
        tokens.extend(accepted[:-1])
        seed = accepted[-1]


def _draft_ahead(seed: int, tokens: Sequence[int], context: DecodingContext) -> Drafting:
    """One pass: the seed as a causal row, which decides the next token, and masks behind it.

    Args:
        seed: the newest token, not yet in the KV cache.
        tokens: all tokens, the seed included.
        context: the request.

    Returns:
        The next token, which is committed, a draft behind it, and how often it was revised.
    """
    sampler, start = context.sampler, len(tokens)
    masks = max(1, context.draft_length(start - 1) - 1)
    visibility, is_mask = led_visibility(1, masks)
    logits = yield Span(
        kind="draft",
        tokens=(seed, *[context.mask_token_id] * masks),
        positions=range(start - 1, start + masks),
        visibility=visibility,
        adapter=is_mask & context.draft_adapter,
        # The first mask stands where the seed decides.
        logits=(0, *context.predicting(range(2, 1 + masks))),
    )
    assert logits is not None
    yield Keep((0,))
    root = sampler.pick(logits.rows[0], start, tokens)
    yield Committed(tokens=(root,), logprobs=sampler.logprobs(logits.rows[:1], (root,)), drafted=0)
    draft = draft_from(logits.rows[1:], start + 1, [*tokens, root], masks, context)
    if context.options.show_drafts:
        yield draft_snapshot(start, root, draft)
    return root, draft, 0


def _draft_block(
    seed: int, tokens: Sequence[int], context: DecodingContext, *, ahead: bool
) -> Drafting:
    """Passes that fill a block which the seed opens (NLD), or goes ahead of."""
    if ahead:
        masks = max(1, context.draft_length(len(tokens) - 1) - 1)
        block = open_block(None, len(tokens), masks, tokens, context)
    else:
        length = context.draft_length(len(tokens))
        block = open_block(seed, len(tokens), length, tokens, context)
    yield from denoise(
        block,
        tokens,
        context,
        kind="draft",
        at_once=not context.options.threshold,
        adapter=context.draft_adapter,
        lead=seed if ahead else None,
    )
    return block.tokens[0], DraftTree.line(block.tokens[1:]), len(block.revised)
