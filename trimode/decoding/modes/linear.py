"""Linear self-speculation: the denoiser drafts a block, one causal pass verifies it.

Source: Nemotron-Labs-Diffusion, `linear_spec_generate` of the public checkpoint and section 3.3 of
arXiv 2607.05722. Differs from it: any number of sequences at once (the engine packs them), the
token budget is exact, drafts share the verifier's sampling noise, and a forced end-of-thinking
token is part of the output and of the cache.

A draft has one of two forms (docs/design/0006). Seeded, NLD's: the newest token is the block's
first and is seen both ways. Led: the newest token is a causal row before the block, without the
adapter, as in AR decoding, so the pass that drafts also decides the next token.
"""

from collections.abc import Callable, Generator, Iterable, Sequence

from trimode.decoding.context import DecodingContext
from trimode.decoding.denoising.block import denoise, open_block
from trimode.decoding.events import Committed, Drafted
from trimode.decoding.modes.spec import DENOISING_OPTIONS, ModeSpec
from trimode.decoding.span import Decoder, Keep, Logits, Span, led_visibility
from trimode.decoding.speculation.draft_tree import DraftTree
from trimode.decoding.speculation.verify import (
    draft_from,
    draft_snapshot,
    first_token,
    follow,
    judged,
    verify_span,
)

Drafting = Generator[Span | Keep | Committed | Drafted, Logits | None, tuple[int, DraftTree]]
"""Returns the root that the draft follows, and the draft."""


def linear_speculation(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Draft and verify until the engine closes the generator; emits exactly AR's tokens."""
    sampler = context.sampler
    tokens = list(prompt)
    newest, _ = yield from first_token(tokens, context)
    make_draft = _draft_maker(context)
    while True:
        # The newest token is known but not yet in the KV cache.
        if not context.seed_block:
            tokens.append(newest)
        root, draft = yield from make_draft(newest, tokens, context)
        start = len(tokens)
        tokens.append(root)
        # Rows beyond the budget would verify tokens that can never be emitted.
        draft = draft.up_to(context.remaining(start + 1) - 1)
        logits = yield verify_span("verify", root, draft, start, 0, context)
        assert logits is not None
        accepted, path = follow(sampler, logits, start + 1, draft, tokens)
        rows = [0, *(1 + node for node in path)]
        yield Keep(rows)
        if context.policy is not None:
            context.policy.drafts.judge(*judged(draft, path))
        yield Committed(
            tokens=tuple(accepted),
            logprobs=sampler.logprobs(logits.rows, accepted, rows),
            drafted=len(draft),
            new_cycle=context.seed_block,
        )
        tokens.extend(accepted[:-1])
        newest = accepted[-1]


def _draft_maker(context: DecodingContext) -> Callable[..., Drafting]:
    """How this request drafts."""
    if context.seed_block:
        return _seeded_draft
    return _led_draft if context.one_pass else _led_denoised_draft


def _led_draft(newest: int, tokens: Sequence[int], context: DecodingContext) -> Drafting:
    """One pass: the newest token as a causal row, which decides the next one, and masks after it.

    Args:
        newest: not yet in the KV cache.
        tokens: all tokens, the newest included.
        context: the request.
    """
    masks = _masks(tokens, context)
    block = [context.mask_token_id] * masks
    root, logits = yield from _led_pass(newest, block, range(1, masks), tokens, context)
    draft = draft_from(logits.rows[1:], logits.hidden[1:], [*tokens, root], masks, context)
    if context.show_drafts:
        yield draft_snapshot(len(tokens), root, draft)
    return root, draft


def _led_pass(
    newest: int,
    block: Sequence[int],
    offsets: Iterable[int],
    tokens: Sequence[int],
    context: DecodingContext,
) -> Generator[Span | Keep | Committed, Logits | None, tuple[int, Logits]]:
    """A pass of the newest token as a causal row without the adapter, and a block after it.

    That row enters the KV cache and decides the block's first token, which is committed.

    Args:
        newest: not yet in the KV cache.
        block: mostly masks.
        offsets: places of the block to be predicted; not the first.
        tokens: all tokens, the newest included.
        context: the request.

    Returns:
        The block's first token, and the logits of the newest token's row and of `offsets`.
    """
    sampler, start = context.sampler, len(tokens)
    visibility, in_block = led_visibility(1, masks=len(block))
    logits = yield Span(
        kind="draft",
        tokens=(newest, *block),
        positions=range(start - 1, start + len(block)),
        visibility=visibility,
        adapter=in_block & context.draft_adapter,
        logits=(0, *context.predicting(offset + 1 for offset in offsets)),
    )
    assert logits is not None
    yield Keep((0,))
    root = sampler.pick(logits.rows[0], start, tokens)
    yield Committed(tokens=(root,), logprobs=sampler.logprobs(logits.rows[:1], (root,)), drafted=0)
    return root, logits


def _led_denoised_draft(newest: int, tokens: Sequence[int], context: DecodingContext) -> Drafting:
    """Several passes over an all-mask block; the newest token leads the first of them.

    Args:
        newest: not yet in the KV cache.
        tokens: all tokens, the newest included.
        context: the request.
    """
    block = open_block(None, len(tokens), _masks(tokens, context), tokens, context)
    offsets = [offset for offset in block.masked if offset]
    root, logits = yield from _led_pass(newest, block.tokens, offsets, tokens, context)
    block.fix(0, root)
    yield from denoise(
        block,
        tokens,
        context,
        kind="draft",
        one_pass=False,
        adapter=context.draft_adapter,
        proposed=(logits.rows[1:], logits.hidden[1:]),
    )
    return block.tokens[0], DraftTree.line(block.tokens[1:])


def _seeded_draft(newest: int, tokens: Sequence[int], context: DecodingContext) -> Drafting:
    """Passes over a block that the newest token opens (NLD).

    Args:
        newest: not yet in the KV cache.
        tokens: all tokens before it.
        context: the request.
    """
    length = context.draft_length(len(tokens))
    block = open_block(newest, len(tokens), length, tokens, context)
    yield from denoise(
        block,
        tokens,
        context,
        kind="draft",
        one_pass=context.one_pass,
        adapter=context.draft_adapter,
    )
    return block.tokens[0], DraftTree.line(block.tokens[1:])


def _masks(tokens: Sequence[int], context: DecodingContext) -> int:
    """Masks of a led draft: the newest token takes one place of the block."""
    return max(1, context.draft_length(len(tokens) - 1) - 1)


def _paying_block(context: DecodingContext) -> int:
    policy, most = context.policy, context.block_length
    if policy is None or not context.one_pass:
        return most
    if context.seed_block:
        return policy.paying_size("linear", most)
    return 1 + policy.paying_size("linear", most - 1)


SPEC = ModeSpec(
    summary="drafts a block, then a second pass verifies it",
    decode=linear_speculation,
    scratch_rows=lambda context: max(2, context.block_length),
    reads=DENOISING_OPTIONS | {"draft_tree"},
    needs_mask=True,
    lossless=True,
    paying_block=_paying_block,
)
