"""Diffusion in the led form: tokens are filled and closed in the same passes.

A pass runs the tokens that are filled but not closed as causal rows without the adapter, and after
them a block of masks. The causal rows do two things. Their keys and values enter the cache, and a
filled token that AR finds too improbable is revised. The last of them gives the next token as AR
decoding would. The masks propose the tokens after that one. So no pass is spent on closing.

- A rolling block takes the leading run of proposals that the commit rule trusts, and moves on: a
  pass makes 1 + run tokens at best. See docs/design/0007.
- A fixed block takes what the rule trusts wherever it stands, and has further passes until it is
  full. The first pass of the next block closes it.

A revision drops the tokens that the masks stood after, so the next pass has nothing filled. Spare
drafts are more masks in the same pass: they stand after those beginnings of the filled tokens that
a revision is likeliest to leave.
"""

from collections.abc import Generator, Sequence

from torch import Tensor

from trimode.decoding.context import DecodingContext
from trimode.decoding.denoising.block import candidates, fill_block, open_block, propose, standing
from trimode.decoding.denoising.commit_rules import trusted
from trimode.decoding.events import Committed, Drafted, TokenState
from trimode.decoding.markov import chained
from trimode.decoding.span import (
    Decoder,
    Keep,
    Logits,
    Span,
    SpanKind,
    causal_span,
    led_visibility,
)


def led_diffusion(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Fill and close in the same passes until the engine closes the generator."""
    sampler = context.sampler
    tokens = list(prompt[:-1])  # what the KV cache holds
    if tokens:
        yield causal_span("prefill", tokens, 0, keep=True)
    filled = [prompt[-1]]  # decided, not yet in the cache; all but the first may be revised
    # Masks stand after so many filled tokens: after all of them, then after those of spare drafts.
    ends: tuple[int, ...] = (1,)
    kind: SpanKind = "prefill"
    while True:
        masks = context.draft_length(len(tokens) + len(filled))
        logits = yield _led_span(kind, filled, ends, len(tokens), masks, context)
        assert logits is not None
        kept = 1 + standing(filled[1:], logits.rows[:-1], frozenset(), context)
        yield Keep(range(kept))
        tokens += filled[:kept]
        following = sampler.pick(logits.rows[kept - 1], len(tokens), tokens)
        closed = (*filled[1:kept], following)
        yield Committed(
            tokens=closed,
            logprobs=sampler.logprobs(logits.rows[:kept], closed),
            revisions=int(kept < len(filled)),
        )
        sure: list[float] = []
        wanted = min(masks, context.remaining(len(tokens)))  # the first mask is decided by AR
        if kept in ends:  # else the masks stood after tokens that are gone
            first = len(filled) + ends.index(kept) * masks
            fill = _rolled if context.rolling_block else _filled
            filled, sure = yield from fill(following, first, wanted, tokens, logits, context)
        else:
            filled = [following]
            if context.show_drafts:
                block = open_block(following, len(tokens), wanted, tokens, context)
                yield block.snapshot({0}, "revised")
        ends = (len(filled), *_likely_ends(sure, context.spare_drafts))
        kind = "denoise"


Filling = Generator[Span | Drafted, Logits | None, tuple[list[int], list[float]]]
"""Returns the tokens filled, the first of them AR's, and the confidence of the others."""


def _rolled(
    following: int,
    first: int,
    wanted: int,
    tokens: Sequence[int],
    logits: Logits,
    context: DecodingContext,
) -> Filling:
    """The leading run of a pass's proposals.

    Args:
        following: the token that AR chose for the first mask.
        first: row of that mask.
        wanted: masks that may be filled, the first included.
        tokens: all before them.
        logits: of the pass.
        context: the request.
    """
    proposing = context.predicting(range(first + 1, first + wanted))
    run, sure = _leading_run(*logits.head(proposing), [*tokens, following], context)
    if context.show_drafts:
        yield _snapshot(len(tokens), (following, *run), sure, wanted, context)
    return [following, *run], sure[: len(run)]


def _filled(
    following: int,
    first: int,
    wanted: int,
    tokens: Sequence[int],
    logits: Logits,
    context: DecodingContext,
) -> Filling:
    """All of a block, by a pass's proposals and further passes. The arguments are `_rolled`'s."""
    block = open_block(following, len(tokens), wanted, tokens, context)
    proposing = context.predicting(first + offset for offset in block.masked)
    return (yield from fill_block(block, tokens, context, logits.head(proposing))), []


def _led_span(
    kind: SpanKind,
    filled: Sequence[int],
    ends: tuple[int, ...],
    start: int,
    masks: int,
    context: DecodingContext,
) -> Span:
    """The filled tokens as causal rows from position `start` on, and masks after them.

    `masks` masks stand after the first n filled tokens, for each n of `ends`; the first n is all.
    """
    visibility, is_mask = led_visibility(*ends, masks=masks)
    return Span(
        kind=kind,
        tokens=(*filled, *[context.mask_token_id] * (masks * len(ends))),
        positions=(
            *range(start, start + len(filled)),
            *(start + end + i for end in ends for i in range(masks)),
        ),
        visibility=visibility,
        adapter=is_mask & context.denoise_adapter,
        logits=range(len(filled)),
    )


def _likely_ends(sure: Sequence[float], most: int) -> tuple[int, ...]:
    """At most so many numbers of filled tokens that a revision is likeliest to leave, sorted.

    `sure`: confidence of each filled token but the first, which AR has chosen.
    """
    stands, chances = 1.0, []
    for confidence in sure:
        chances.append(stands * (1 - confidence))
        stands *= confidence
    order = sorted(range(len(chances)), key=chances.__getitem__, reverse=True)
    return tuple(sorted(1 + place for place in order[:most]))


def _leading_run(
    rows: Tensor, states: Tensor, known: list[int], context: DecodingContext
) -> tuple[list[int], list[float]]:
    """The longest run of proposals from the left that the commit rule trusts, and all confidences.

    Row i of `rows` `[n, vocab]`, and of hidden states `[n, dim]`, is for absolute position
    len(known) + i. A run ends with a stop token, and before a position where the end of thinking is
    due.
    """
    start, count = len(known), len(rows)
    due = context.forced_offset(start, count, known)
    if due is not None:
        rows, states, count = rows[:due], states[:due], due
    if not count:
        return [], []
    rows = context.sampler.exclude_mask(rows)
    if context.markov_head is None:
        tokens = candidates(rows, start, list(range(count)), known, context)
    else:
        positions = range(start, start + count)
        rows, tokens = chained(rows, states, positions, known.__getitem__, known, context)
    block = (known[-1], *[context.mask_token_id] * count)
    quota = -(-context.block_length // context.max_denoising_steps)
    proposal = propose(rows, tokens, start - 1, block, range(1, count + 1), context, quota)
    _, chosen = trusted(context.commit_rule, proposal, context.threshold)
    run = int(chosen.int().cumprod(0).sum())
    taken = tokens[:run].tolist()
    for i, token in enumerate(taken):
        if token in context.stop_token_ids:
            taken = taken[: i + 1]
            break
    return taken, proposal.confidences.tolist()


def _snapshot(
    start: int, known: Sequence[int], sure: Sequence[float], length: int, context: DecodingContext
) -> Drafted:
    """The block as a user may see it; its first token is AR's."""
    filled, masked = len(known), max(0, length - len(known))
    new: tuple[TokenState, ...] = ("new",) * (filled - 1)
    masks: tuple[TokenState, ...] = ("mask",) * masked
    return Drafted(
        start=start,
        tokens=(*known, *[context.mask_token_id] * masked),
        confidences=(1.0, *sure[: filled - 1], *[0.0] * masked),
        states=("kept", *new, *masks),
    )
