"""Log-probabilities of a given text under AR decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.decoding import Sampler, TokenLogprob
from trimode.model import KVCache, Segment

_CHUNK = 512
_HEAD_ROWS = 128
"""Rows whose logits are held at once: 128 x 49,152 floats are 25 MB."""


@torch.inference_mode()
def prefill_hidden(model: LoadedModel, tokens: Sequence[int], chunk: int = _CHUNK) -> Tensor:
    """Hidden states `[len(tokens), dim]` of a fresh causal prefill in passes of `chunk` rows."""
    runner = model.runner
    device = runner.device
    cache = KVCache(model.config, len(tokens), dtype=runner.kv_dtype, device=device)
    ids = torch.tensor(tokens, device=device).split(chunk)
    positions = torch.arange(len(tokens), device=device).split(chunk)
    hidden = []
    for part, where in zip(ids, positions, strict=True):
        hidden.append(runner.run(part, where, [Segment(0, len(part), cache, "causal")]))
        cache.keep(range(len(part)))
    return torch.cat(hidden)


@torch.inference_mode()
def score(
    model: LoadedModel, tokens: Sequence[int], alternatives: int
) -> list[TokenLogprob | None]:
    """Log-probability of each token after those before it, with `alternatives` alternatives.

    The first is None, since nothing precedes it.
    """
    options = GenerationOptions(logprobs=alternatives)
    sampler = Sampler(options, model.config.mask_token_id, len(tokens))
    found: list[TokenLogprob | None] = [None]
    hidden = prefill_hidden(model, tokens)
    for start in range(0, len(tokens) - 1, _HEAD_ROWS):
        wanted = tokens[start + 1 : start + 1 + _HEAD_ROWS]
        found += sampler.logprobs(model.runner.logits(hidden[start : start + len(wanted)]), wanted)
    return found
