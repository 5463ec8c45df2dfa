"""One pass of a model."""

import time

import torch

from trimode.model import KVCache, Runner, Segment


def run(runner: Runner, cache: KVCache, rows: int) -> tuple[torch.Tensor, float]:
    """Hidden states of a pass `[rows, dim]`, and seconds that the head took.

    The head does what greedy decoding asks for: likeliest tokens, from all logits if that is the
    faster way.
    """
    tokens = torch.arange(100, 100 + rows)
    positions = torch.arange(cache.length, cache.length + rows)
    hidden = runner.run(tokens, positions, [Segment(0, rows, cache, "causal")])
    began = time.perf_counter()
    if runner.likeliest(hidden) is None:
        runner.logits(hidden).argmax(-1)
    return hidden, time.perf_counter() - began
