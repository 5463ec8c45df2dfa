"""What trainings of small networks share: examples in turn, and the scale of what they read."""

from collections.abc import Iterator

import torch
from torch import Tensor


def batches(examples: Tensor, count: int, size: int) -> Iterator[Tensor]:
    """So many batches of `size` examples `[n]`; each example in turn, in an order drawn anew."""
    order, start = examples[:0], 0
    for _ in range(count):
        if start + size > len(order):
            order, start = examples[torch.randperm(len(examples))], 0
        yield order[start : start + size]
        start += size


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())
