"""Linear self-speculation: the denoiser drafts a block, one causal pass verifies it.

Source: Nemotron-Labs-Diffusion, `linear_spec_generate` of the public checkpoint and section 3.3 of
arXiv 2607.05722. Differs from it: any number of sequences at once (the engine packs them), the
token budget is exact, drafts share the verifier's sampling noise, and a forced end-of-thinking
token is part of the output and of the cache.
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
        start = len(tokens)  # the seed is known but not yet in the KV cache
        block = open_block(seed, start, context.draft_length(start), tokens, context)
        yield from denoise(
            block,
            tokens,
            context,
            kind="draft",
            at_once=not context.options.threshold,
            adapter=context.draft_adapter,
        )
        tokens.append(seed)
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
            revisions=len(block.revised),
        )
        tokens.extend(accepted[:-1])
        seed = accepted[-1]
