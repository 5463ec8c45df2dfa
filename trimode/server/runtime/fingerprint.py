"""`system_fingerprint`: it changes with everything that may change an answer to one seed."""

import hashlib

import torch

from trimode import __version__
from trimode.checkpoints import LoadedModel
from trimode.model import KVCache, Segment

_TOKENS = 8


@torch.inference_mode()
def fingerprint(model: LoadedModel) -> str:
    """Version, weight format, and a digest of the logits of one pass over fixed tokens.

    The logits stand for the weights, those of the adapter included (half of the rows run through
    it), and for the way they are computed: device, kernels, number of threads.
    """
    transformer, config = model.transformer, model.config
    device = transformer.device
    cache = KVCache(config, _TOKENS, dtype=transformer.kv_dtype, device=device)
    tokens = torch.arange(1, 1 + _TOKENS, device=device) * 7919 % config.vocab_size
    hidden = transformer.run(
        tokens,
        torch.arange(_TOKENS, device=device),
        [Segment(0, _TOKENS, cache, "causal")],
        None if model.adapter_scope is None else torch.arange(_TOKENS // 2, _TOKENS, device=device),
    )
    values = transformer.logits(hidden).float().cpu().numpy().tobytes()
    return f"trimode-{__version__}-{transformer.kernel}-{hashlib.sha256(values).hexdigest()[:12]}"
