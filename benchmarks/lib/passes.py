"""One pass of a model."""

import time

import torch

from trimode.model import KVCache, Runner, Segment


def run(runner: Runner, cache: KVCache, rows: int) -> tuple[torch.Tensor, float]:
    """Logits of a pass, and seconds that the head took."""
    tokens = torch.arange(100, 100 + rows)
    positions = torch.arange(cache.length, cache.length + rows)
    hidden = runner.run(tokens, positions, [Segment(0, rows, cache, "causal")])
    began = time.perf_counter()
    return runner.logits(hidden), time.perf_counter() - began
