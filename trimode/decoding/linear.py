"""Linear self-speculation: the denoiser drafts a block, one causal pass verifies it.

Source: Nemotron-Labs-Diffusion, `linear_spec_generate` of the public checkpoint and section 3.3 of
arXiv 2607.05722. Differs from it: any number of sequences at once (the engine packs them), the
token budget is exact, drafts share the verifier's sampling noise, and a forced end-of-thinking
token is part of the output and of the cache.

In NLD's form the last committed token, the seed, opens the block and is seen both ways. With
`seed_block` off it goes ahead of the block: its row is causal and without the adapter, as in AR
decoding, so the pass that drafts also yields the next token for certain. See docs/design/0006.
"""

from collections.abc import Sequence

from trimode.decoding.block import denoise, open_block
from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed
from trimode.decoding.span import Decoder, Keep, causal_span


def linear_speculation(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Draft and verify until the engine closes the generator; emits exactly AR's tokens."""
    sampler = context.sampler
    tokens = list(prompt)
    logits = yield causal_span("prefill", tokens, 0, keep=True, logits=(len(tokens) - 1,))
    assert logits is not None
    seed = sampler.pick(logits.rows[0], len(tokens), tokens)
    yield Committed(tokens=(seed,), logprobs=sampler.logprobs(logits.rows, (seed,)))
    while True:
        start, lead = len(tokens), None  # the seed is known but not yet in the KV cache
        if context.seed_drafts:
            block = open_block(seed, start, context.draft_length(start), tokens, context)
        else:
            tokens.append(seed)
            lead = seed
            masks = max(1, context.draft_length(start) - 1)
            block = open_block(None, start + 1, masks, tokens, context)
        yield from denoise(
            block,
            tokens,
            context,
            kind="draft",
            at_once=not context.options.threshold,
            adapter=context.draft_adapter,
            lead=lead,
        )
        start = block.start
        tokens.append(block.tokens[0])  # AR's own choice in both forms
        # Rows beyond the budget would verify tokens that can never be emitted.
        checked = block.tokens[: context.remaining(start + 1)]
        logits = yield causal_span("verify", checked, start, keep=False, logits=range(len(checked)))
        assert logits is not None
        accepted = sampler.verify(logits.rows, start + 1, checked[1:], tokens)
        yield Keep(range(len(accepted)))
        logprobs = sampler.logprobs(logits.rows[: len(accepted)], accepted)
        yield Committed(
            tokens=tuple(accepted),
            logprobs=logprobs,
            drafted=len(checked) - 1,
            new_cycle=lead is None,
            revisions=len(block.revised),
        )
        tokens.extend(accepted[:-1])
        seed = accepted[-1]
