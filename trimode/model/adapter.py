"""A low-rank weights delta (LoRA) that is on for some rows of a pass and off for the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

AdapterScope = Literal["draft", "denoise"]
"""`draft`: on in speculation's drafts only (NLD). `denoise`: on in every denoising pass."""

AdapterRows = Tensor | slice | None
"""Rows of the pass that the adapter is on for: indices `[m]`, all of them, or none."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter as read from its file."""

    scale: float
    """lora_alpha / rank."""
    targets: dict[str, tuple[Tensor, Tensor]]
    """Canonical linear name -> (A `[rank, in]`, B `[out, rank]`)."""
    scope: AdapterScope
    mask_embedding: Tensor | None = None
    """Embedding `[hidden]` of the mask token while the adapter is on."""


class LowRankDelta(nn.Module):
    """x -> scale * B(A(x)) for one linear, or for several fused into one."""

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(down, requires_grad=False)
        self.up = nn.Parameter(up, requires_grad=False)

    @classmethod
    def fused(
        cls,
        parts: Sequence[tuple[Tensor, Tensor] | None],
        sizes: Sequence[int],
        scale: float,
    ) -> "LowRankDelta | None":
        """One delta for linears whose outputs are concatenated; None if no part has one.

        Args:
            parts: (A, B) of each linear, None where the adapter leaves it alone.
            sizes: output features of each linear.
            scale: multiplied into B.
        """
        present = [part for part in parts if part is not None]
        if not present:
            return None
        down = torch.cat([a for a, _ in present])
        up = down.new_zeros(sum(sizes), len(down))
        row = column = 0
        for part, size in zip(parts, sizes, strict=True):
            if part is not None:
                b = part[1]
                up[row : row + size, column : column + b.shape[1]] = b * scale
                column += b.shape[1]
            row += size
        return cls(down, up)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return (x @ self.down.T) @ self.up.T


class Projection(nn.Module):
    """A linear layer with an optional delta on chosen rows."""

    def __init__(self, linear: nn.Module, delta: LowRankDelta | None) -> None:
        super().__init__()
        self.linear = linear
        self.delta = delta

    def forward(self, x: Tensor, rows: AdapterRows) -> Tensor:
        """`[T, in]` -> `[T, out]`; the delta is added on `rows`."""
        y = self.linear(x)
        if self.delta is not None and rows is not None:
            y[rows] += self.delta(x[rows])
        return y
