"""Masking noise: which tokens of a noisy block are masked, and their weights in the loss."""

import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trimode.config import check_range
from trimode.training.masks import Blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseConfig:
    """How the noisy copies are made. The defaults are NLD's."""

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
    """Share of blocks that are all masks, like a draft before its first pass."""
    seeded_share: float = 0.0
    """Share of blocks whose first token stays clean: linear drafts and diffusion begin with AR's
    token, quadratic drafts and all-mask starts do not."""

    def __post_init__(self) -> None:
        for name in ("eps", "draft_share", "seeded_share"):
            check_range(name, getattr(self, name), 0, 1)
        check_range("position_half_life", self.position_half_life, 0, None, exclusive_low=True)


@dataclass(frozen=True, slots=True)
class Noise:
    """What to mask, `[R, N, B]`."""

    masked: Tensor
    """bool: replaced by the mask token and trained on."""
    weights: Tensor
    """fp32: weight of each token in the diffusion loss; 0 if it is not masked."""


def keyed_generator(seed: int, *key: int | str) -> torch.Generator:
    """Random numbers that are a function of the seed and the key.

    A row's noise is keyed by its number in the run, so it does not depend on how a batch is divided
    over passes and processes. No two data-parallel ranks share a t either: that would cost NLD
    accuracy (arXiv 2607.05722).
    """
    name = " ".join(map(str, (seed, *key)))
    return torch.Generator().manual_seed(random.Random(name).getrandbits(63))


def draw_noise(
    config: NoiseConfig, blocks: Blocks, learn: Tensor, generator: torch.Generator
) -> Noise:
    """Draw masks for the blocks of a batch.

    Args:
        config: the kind of noise.
        blocks: where the blocks lie.
        learn: tokens that may be masked, bool `[R, L]`; prompts and padding never are.
        generator: where the random numbers come from.

    Source: NLD's `forward_process` (t ~ U(0, 1), p = (1 - eps) t + eps, weight 1 / p).
    """
    shape = blocks.index.shape
    rows, count, length = shape
    if config.level == "sequence":
        drawn = torch.rand(rows, int(blocks.groups.max()) + 1, generator=generator)
        t = drawn.gather(1, blocks.groups)
    else:
        t = torch.rand(rows, count, generator=generator)
    p = ((1 - config.eps) * t + config.eps)[:, :, None].expand(shape)
    if config.position_half_life is not None:
        p = _biased(p, blocks.inside, config.position_half_life)
    masked = torch.rand(shape, generator=generator) < p
    first = torch.arange(length) == 0
    if config.draft_share:
        is_draft = torch.rand(rows, count, 1, generator=generator) < config.draft_share
        masked = masked | is_draft
        p = torch.where(is_draft, torch.ones_like(p), p)
    if config.seeded_share:
        is_seeded = torch.rand(rows, count, 1, generator=generator) < config.seeded_share
        masked = masked & ~(is_seeded & first)
    allowed = learn.gather(1, blocks.index.flatten(1)).view(shape)
    masked = masked & allowed & blocks.inside
    weights = masked / p if config.weighting == "inverse" else masked.float()
    return Noise(masked, weights)


def _biased(p: Tensor, inside: Tensor, half_life: float) -> Tensor:
    """Mask probabilities that fall towards a block's start, with the block's mean kept at p.

    The weight of a token a fraction d of the block before its end is 2^(-d / half_life).
    """
    lengths = inside.sum(2, keepdim=True).clamp(min=1)
    distance = (lengths - 1 - torch.arange(inside.shape[2])) / lengths
    odds = torch.exp2(-distance / half_life) * inside
    return (p * odds * lengths / odds.sum(2, keepdim=True).clamp(min=1e-9)).clamp(1e-6, 1.0)
