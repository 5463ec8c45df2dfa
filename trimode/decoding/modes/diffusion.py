"""Block diffusion: a block of masks is filled over several passes, then rewritten causally.

Source: Nemotron-Labs-Diffusion, `generate` of the public checkpoint. Differs from it: the mask id
is never a candidate, the last block is shortened to the token budget, each sequence ends at its
own stop token, and committed tokens may be revised before the block closes.
"""

from collections.abc import Sequence

from trimode.decoding.context import DecodingContext
from trimode.decoding.denoising.block import denoise, open_block
from trimode.decoding.denoising.rolling import rolling_diffusion
from trimode.decoding.events import Committed
from trimode.decoding.modes.spec import DENOISING_OPTIONS, ModeSpec
from trimode.decoding.span import Decoder, causal_span


def block_diffusion(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Decode block after block until the engine closes the generator."""
    sampler = context.sampler
    tokens = list(prompt)
    logits = yield causal_span("prefill", tokens, 0, keep=True, logits=(len(tokens) - 1,))
    while True:
        assert logits is not None
        start = len(tokens)
        before = logits.rows[-1:]
        seed = sampler.pick(before[0], start, tokens) if context.seed_block else None
        length = min(context.block_length, context.remaining(start))
        block = open_block(seed, start, length, tokens, context)
        yield from denoise(
            block,
            tokens,
            context,
            kind="denoise",
            one_pass=False,
            adapter=context.denoise_adapter,
            stop_token_ids=context.stop_token_ids,
        )
        block_tokens = tuple(block.tokens[: block.end(context.stop_token_ids)])
        tokens.extend(block_tokens)

        # The causal pass puts the block's keys and values where AR decoding would have put them
        # and yields the next seed. It runs for the last block too: a later turn continues there.
        scored = sampler.reports_logprobs
        last = len(block_tokens) - 1
        rows = range(len(block_tokens)) if scored else (last,)
        logits = yield causal_span("close", block_tokens, start, keep=True, logits=rows)
        assert logits is not None
        logprobs = ()
        if scored:
            first = sampler.logprobs(before, block_tokens[:1])
            logprobs = first + sampler.logprobs(logits.rows[:-1], block_tokens[1:])
        revisions = len(block.revised)
        yield Committed(tokens=block_tokens, logprobs=logprobs, revisions=revisions)


def diffusion(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Diffusion in a rolling or in a fixed block."""
    decode = rolling_diffusion if context.rolling_block else block_diffusion
    return decode(prompt, context)


def _scratch_rows(context: DecodingContext) -> int:
    # A rolling block runs after the tokens it has filled, and so do its spare ones.
    return context.block_length * (2 + context.spare_drafts if context.rolling_block else 1)


SPEC = ModeSpec(
    summary="fills a block of masks over a few passes",
    decode=diffusion,
    scratch_rows=_scratch_rows,
    reads=DENOISING_OPTIONS | {"rolling_block", "spare_drafts"},
    needs_mask=True,
    lossless=False,
)
