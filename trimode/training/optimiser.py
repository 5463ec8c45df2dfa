"""AdamW, its schedule, and the moving average of what it trains."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trimode.training.adapter import Trainable
from trimode.training.config import OptimiserConfig


def make_optimiser(trained: Sequence[Trainable], config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW with one group for each pair of learning rate scale and decay."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for item in trained:
        decay = config.weight_decay if item.decays else 0.0
        groups.setdefault((item.learning_rate_scale, decay), []).append(item.parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "scale": scale}
            for (scale, decay), parameters in groups.items()
        ],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


def learning_rate(step: int, steps: int, config: OptimiserConfig) -> float:
    """Learning rate of step `step` (from 0) of `steps`.

    The warm-up is linear. After it the rate is constant, or a half cosine down to `final_ratio`, or
    WSD: constant until `decay_steps` before the end, then linear down to `final_ratio` (MiniCPM,
    arXiv 2404.06395).
    """
    peak, final = config.learning_rate, config.learning_rate * config.final_ratio
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return final + (peak - final) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    if config.schedule == "wsd" and config.decay_steps:
        left = max(0, steps - step) / config.decay_steps
        return final + (peak - final) * min(1.0, left)
    return peak


class MovingAverage:
    """Exponential moving average of parameters, by name."""

    def __init__(self, trained: Sequence[Trainable], decay: float) -> None:
        self.decay = decay
        self.values = {item.name: item.parameter.detach().clone() for item in trained}

    @torch.no_grad()
    def update(self, trained: Sequence[Trainable], step: int) -> None:
        """Add the parameters after step `step` (from 0). A young average forgets faster."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for item in trained:
            self.values[item.name].lerp_(item.parameter, 1 - decay)

    @torch.no_grad()
    def swap(self, trained: Sequence[Trainable]) -> None:
        """Exchange the averages with the parameters. A second call undoes it."""
        for item in trained:
            value = self.values[item.name]
            kept = item.parameter.detach().clone()
            item.parameter.copy_(value)
            value.copy_(kept)


def gradient_norm(parameters: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all gradients."""
    found = [p.grad for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(found)
