"""`system_fingerprint`: it changes with everything that may change an answer to one seed."""

import hashlib

import torch

from trimode.checkpoints import LoadedModel
from trimode.model import KVCache, Segment
from trimode.version import __version__

_TOKENS = 8


@torch.inference_mode()
def fingerprint(model: LoadedModel) -> str:
    """Version, weight format, and a digest of the logits of one pass over fixed tokens.

    The logits stand for the weights, those of the adapter included (half of the rows run through
    it), and for the way they are computed: device, kernels, number of threads.
    """
    runner, config = model.runner, model.config
    device = runner.device
    cache = KVCache(config, _TOKENS, dtype=runner.kv_dtype, device=device)
    tokens = torch.arange(1, 1 + _TOKENS, device=device) * 7919 % config.vocab_size
    hidden = runner.run(
        tokens,
        torch.arange(_TOKENS, device=device),
        [Segment(0, _TOKENS, cache, "causal")],
        None if model.adapter_scope is None else torch.arange(_TOKENS // 2, _TOKENS, device=device),
    )
    values = runner.logits(hidden).float().cpu().numpy().tobytes()
    return f"trimode-{__version__}-{runner.format.name}-{hashlib.sha256(values).hexdigest()[:12]}"
