"""Block diffusion: a block of masks is filled over several passes, then rewritten causally.

Source: Nemotron-Labs-Diffusion, `generate` of the public checkpoint. Differs from it: the mask id
is never a candidate, the last block is shortened to the token budget, each sequence ends at its
own stop token, and the causal pass may revise what it closes (docs/design/0020).
"""

from collections.abc import Sequence

import torch

from trimode.decoding.context import DecodingContext
from trimode.decoding.denoising.block import fill_block, open_block, standing
from trimode.decoding.denoising.led import led_diffusion
from trimode.decoding.events import Committed
from trimode.decoding.modes.spec import DENOISING_OPTIONS, ModeSpec
from trimode.decoding.span import Decoder, Keep, causal_span


def block_diffusion(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Decode block after block until the engine closes the generator."""
    sampler = context.sampler
    tokens = list(prompt)
    logits = yield causal_span("prefill", tokens, 0, keep=True, logits=(len(tokens) - 1,))
    assert logits is not None
    before = logits.rows  # predicts the next token, `[1, vocab]`
    seeded, revisions = context.seed_block, 0
    while True:
        start = len(tokens)
        seed = sampler.pick(before[0], start, tokens) if seeded else None
        length = min(context.block_length, context.remaining(start))
        block = open_block(seed, start, length, tokens, context)
        if revisions and context.show_drafts:
            yield block.snapshot({0}, "revised")
        filled = yield from fill_block(block, tokens, context)

        # The causal pass puts the block's keys and values where AR decoding would have put them
        # and yields the next seed. It runs for the last block too: a later turn continues there.
        judged = context.revision_threshold > 0 or sampler.reports_logprobs
        rows = range(len(filled)) if judged else (len(filled) - 1,)
        logits = yield causal_span("close", filled, start, keep=False, logits=rows)
        assert logits is not None
        causal = torch.cat([before, logits.rows])
        kept = standing(filled, causal[:-1], block.fixed, context) if judged else len(filled)
        before = causal[kept : kept + 1] if judged else logits.rows
        yield Keep(range(kept))
        closed = tuple(filled[:kept])
        tokens += closed
        # AR's choice takes the place of the token that fell, so every block makes progress.
        revisions = int(kept < len(filled))
        seeded = context.seed_block or revisions > 0
        if closed:
            logprobs = sampler.logprobs(causal[:kept], closed)  # none if the request asked for none
            yield Committed(tokens=closed, logprobs=logprobs, revisions=revisions)


def diffusion(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Diffusion in the led form or in NLD's."""
    decode = led_diffusion if context.led_blocks else block_diffusion
    return decode(prompt, context)


def _scratch_rows(context: DecodingContext) -> int:
    # In the led form a block runs after the tokens that are not closed, and so do its spare ones.
    return context.block_length * (2 + context.spare_drafts if context.led_blocks else 1)


SPEC = ModeSpec(
    summary="fills a block of masks over a few passes",
    decode=diffusion,
    scratch_rows=_scratch_rows,
    reads=DENOISING_OPTIONS | {"revision_threshold", "rolling_block", "spare_drafts"},
    needs_mask=True,
    lossless=False,
)
