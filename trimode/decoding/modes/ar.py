"""Autoregressive decoding: one token a pass, causal attention. The reference behaviour."""

from collections.abc import Sequence

from trimode.decoding.context import DecodingContext
from trimode.decoding.events import Committed
from trimode.decoding.modes.spec import ModeSpec
from trimode.decoding.span import Decoder, causal_span


def autoregressive(prompt: Sequence[int], context: DecodingContext) -> Decoder:
    """Decode until the engine closes the generator."""
    sampler = context.sampler
    tokens = list(prompt)
    logits = yield causal_span("prefill", tokens, 0, keep=True, **sampler.asks((len(tokens) - 1,)))
    while True:
        assert logits is not None
        token = sampler.decide(logits, 0, len(tokens), tokens)
        tokens.append(token)
        yield Committed(tokens=(token,), logprobs=sampler.logprobs(logits.rows, (token,)))
        logits = yield causal_span(
            "decode", (token,), len(tokens) - 1, keep=True, **sampler.asks((0,))
        )


SPEC = ModeSpec(
    summary="one token",
    decode=autoregressive,
    scratch_rows=lambda _: 1,
    reads=frozenset(("show_drafts",)),
    needs_mask=False,
    lossless=True,
)
