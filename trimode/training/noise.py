"""Masking noise: which tokens of the noisy copy are masked, and what each is worth in the loss."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trimode.errors import InputError

RANK_STRIDE = 100
"""Distance between the seeds of data-parallel ranks (Megatron-Bridge: 1234 + 100 * rank)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """How the noisy copy is made. The defaults are NLD's."""

    eps: float = 1e-3
    """Least mask probability: p = (1 - eps) t + eps."""
    level: Literal["sequence", "block"] = "sequence"
    """Whether t ~ U(0, 1) is drawn once a sequence (NLD) or once a block (BD3-LM)."""
    weighting: Literal["inverse", "none"] = "inverse"
    """Weight of a masked token: 1 / p (the diffusion bound), or 1."""
    position_half_life: float | None = None
    """Bias masking towards a block's end: within a block the mask odds halve over this fraction
    of its length, counted from the end. Efficient-DLM uses 0.1; None is uniform."""
    draft_share: float = 0.0
    """Share of blocks that look as a speculative draft does: first token clean, the rest masked."""

    def __post_init__(self) -> None:
        for name, low, high in (("eps", 0.0, 1.0), ("draft_share", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(name, str(value), f"must be in {low:g} to {high:g}")
        if self.position_half_life is not None and self.position_half_life <= 0:
            raise InputError("position_half_life", str(self.position_half_life), "must be above 0")


@dataclass(frozen=True, slots=True)
class Noise:
    """What to mask, `[batch, seq]`."""

    masked: Tensor
    """bool: replaced by the mask token in the noisy copy."""
    weights: Tensor
    """fp32: weight of each token in the diffusion loss; 0 where not masked."""


def rank_generator(seed: int, rank: int = 0) -> torch.Generator:
    """A noise stream of its own for each data-parallel rank.

    Without it all ranks draw the same t, which costs accuracy (NLD's ablation, arXiv 2607.05722).
    """
    return torch.Generator().manual_seed(seed + RANK_STRIDE * rank)


def draw_noise(
    config: NoiseConfig, blocks: Tensor, trainable: Tensor, generator: torch.Generator
) -> Noise:
    """Draw masks for a batch.

    Args:
        config: the kind of noise.
        blocks: index of each token's block, int64 `[batch, seq]`, rising along the sequence.
        trainable: bool `[batch, seq]`; the other tokens (prompt, padding) are never masked.
        generator: where the random numbers come from.

    Source: NLD's `forward_process` (t ~ U(0, 1), p = (1 - eps) t + eps, weight 1 / p).
    """
    batch, length = blocks.shape
    if config.level == "sequence":
        t = torch.rand(batch, 1, generator=generator).expand(batch, length)
    else:
        t = torch.rand(batch, length, generator=generator).gather(1, blocks)
    p = (1 - config.eps) * t + config.eps
    if config.position_half_life is not None:
        p = _biased(p, blocks, config.position_half_life)
    masked = torch.rand(batch, length, generator=generator) < p
    if config.draft_share:
        chosen = torch.rand(batch, length, generator=generator).gather(1, blocks)
        is_draft = chosen < config.draft_share
        masked = torch.where(is_draft, ~block_starts(blocks), masked)
        p = torch.where(is_draft, torch.ones_like(p), p)
    masked &= trainable
    weights = masked / p if config.weighting == "inverse" else masked.float()
    return Noise(masked, weights)


def block_starts(blocks: Tensor) -> Tensor:
    """Bool `[batch, seq]`: whether a token is the first of its block."""
    first = torch.ones_like(blocks[:, :1], dtype=torch.bool)
    return torch.cat((first, blocks[:, 1:] != blocks[:, :-1]), dim=1)


def offsets_in_block(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's offset in its block and that block's length, int64 `[batch, seq]`."""
    places = torch.arange(blocks.shape[1]).expand_as(blocks)
    starts = torch.where(block_starts(blocks), places, 0).cummax(dim=1).values
    ones = torch.ones_like(blocks)
    lengths = torch.zeros_like(blocks).scatter_add_(1, blocks, ones).gather(1, blocks)
    return places - starts, lengths


def _biased(p: Tensor, blocks: Tensor, half_life: float) -> Tensor:
    """Mask probabilities that fall towards a block's start, with the block's mean kept at p.

    The weight of a token a fraction d of the block before its end is 2^(-d / half_life).
    """
    offsets, lengths = offsets_in_block(blocks)
    distance = (lengths - 1 - offsets) / lengths
    odds = torch.exp2(-distance / half_life)
    total = torch.zeros_like(odds).scatter_add_(1, blocks, odds).gather(1, blocks)
    return (p * odds * lengths / total).clamp(1e-6, 1.0)
