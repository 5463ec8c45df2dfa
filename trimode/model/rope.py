"""Rotary position embedding: default, linear, YaRN and llama3 frequencies, Llama-4 query scale.

Rotation pairs dimension i with i + dim/2, as Hugging Face checkpoints expect. `dim` is the number
of rotated dimensions of a head.
"""

import math

import torch
from torch import Tensor, nn

from trimode.config import RopeConfig

Rotation = tuple[Tensor, Tensor] | None
"""Cos and sin; None rotates nothing."""


def inverse_frequencies(rope: RopeConfig, dim: int) -> tuple[Tensor, float]:
    """Inverse frequencies fp32 `[dim / 2]` and the factor on cos and sin."""
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    frequencies = 1.0 / (rope.rope_theta**exponents)
    if rope.frequency_factors is not None:
        frequencies = frequencies / torch.tensor(rope.frequency_factors)
    factor = 1.0 if rope.attention_factor is None else rope.attention_factor
    match rope.rope_type:
        case "default":
            return frequencies, factor
        case "linear":
            return frequencies / rope.factor, factor
        case "llama3":
            return _llama3(frequencies, rope), factor
        case "yarn":
            return _yarn(frequencies, rope, dim), _yarn_attention_factor(rope)


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Stretch long wavelengths, keep short ones, blend between (Llama 3.1 model card code)."""
    original = rope.original_max_position_embeddings
    assert original is not None  # RopeConfig checked it
    wavelengths = 2 * math.pi / frequencies
    longest, shortest = original / rope.low_freq_factor, original / rope.high_freq_factor
    blend = (original / wavelengths - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    stretched = frequencies / rope.factor
    blended = (1 - blend) * stretched + blend * frequencies
    result = torch.where(wavelengths > longest, stretched, frequencies)
    between = (wavelengths <= longest) & (wavelengths >= shortest)
    return torch.where(between, blended, result)


def _yarn(frequencies: Tensor, rope: RopeConfig, dim: int) -> Tensor:
    """Blend interpolated and original frequencies by rotation count (arXiv 2309.00071, 3.2)."""
    original = rope.original_max_position_embeddings
    assert original is not None  # RopeConfig checked it

    def dimension_of(rotations: float) -> float:
        turns = original / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(rope.rope_theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001  # the ramp must not divide by zero
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return frequencies / rope.factor * ramp + frequencies * (1 - ramp)


def _yarn_attention_factor(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0

    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


class Rope(nn.Module):
    """Cos, sin and query scale for given positions."""

    def __init__(self, rope: RopeConfig, dim: int) -> None:
        super().__init__()
        frequencies, self.factor = inverse_frequencies(rope, dim)
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.query_beta = rope.llama_4_scaling_beta
        self.query_window = rope.original_max_position_embeddings or 1

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cos and sin `[T, 1, dim / 2]` for positions `[T]`, computed in fp32."""
        angles = positions.float()[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.factor != 1.0:
            cos, sin = cos * self.factor, sin * self.factor
        return cos.to(dtype)[:, None], sin.to(dtype)[:, None]

    def query_scale(self, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Llama-4 query scale `[T, 1, 1]`, or None if it is 1 everywhere.

        Source: 1 + beta * ln(1 + floor(position / original_max)).
        """
        if not self.query_beta or int(positions.max()) < self.query_window:
            return None
        window = torch.floor(positions.float() / self.query_window)
        return (1 + self.query_beta * torch.log1p(window)).to(dtype)[:, None, None]


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Apply a rotation to the first dimensions of `[T, heads, head_dim]`."""
    if rotation is None:
        return heads
    cos, sin = rotation
    half = cos.shape[-1]
    first, second, rest = heads.split((half, half, heads.shape[-1] - 2 * half), dim=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)
