"""Log-probabilities of a given text under AR decoding."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimode.checkpoints import LoadedModel
from trimode.decoding import TokenLogprob
from trimode.model import KVCache, Segment

_CHUNK = 512
_HEAD_ROWS = 128
"""Rows whose logits are held at once: 128 x 49,152 floats are 25 MB."""


@torch.inference_mode()
def prefill_hidden(model: LoadedModel, tokens: Sequence[int], chunk: int = _CHUNK) -> Tensor:
    """Hidden states `[len(tokens), dim]` of a fresh causal prefill in passes of `chunk` rows."""
    transformer = model.transformer
    device = transformer.device
    cache = KVCache(model.config, len(tokens), dtype=transformer.dtype, device=device)
    ids = torch.tensor(tokens, device=device).split(chunk)
    positions = torch.arange(len(tokens), device=device).split(chunk)
    hidden = []
    for part, where in zip(ids, positions, strict=True):
        hidden.append(transformer.run(part, where, [Segment(0, len(part), cache, "causal")]))
        cache.keep(range(len(part)))
    return torch.cat(hidden)


@torch.inference_mode()
def score(
    model: LoadedModel, tokens: Sequence[int], alternatives: int
) -> list[TokenLogprob | None]:
    """Log-probability of each token after those before it, with so many alternatives.

    None for the first: nothing precedes it.
    """
    found: list[TokenLogprob | None] = [None]
    hidden = prefill_hidden(model, tokens)[:-1]
    targets = torch.tensor(tokens[1:], device=hidden.device)
    mask = model.config.mask_token_id
    for rows, wanted in zip(hidden.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True):
        logits = model.transformer.logits(rows)
        if mask is not None:
            logits[:, mask] = -torch.inf
        scores = logits.log_softmax(-1)
        values, ids = scores.topk(alternatives)
        own = scores.gather(-1, wanted[:, None])[:, 0]
        for value, best, best_ids in zip(own.tolist(), values.tolist(), ids.tolist(), strict=True):
            found.append(TokenLogprob(value, tuple(zip(best_ids, best, strict=True))))
    return found
