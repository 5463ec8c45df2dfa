"""Ordinary parameters and `F.linear`: training, CUDA, bf16 on CPUs that multiply it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from trimode.model.formats.format import Embedding, Stored, WeightFormat, stacked


class PlainLinear(nn.Module):
    """`F.linear` over ordinary parameters."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return F.linear(x, self.weight, self.bias)


class PlainFormat(WeightFormat):
    """Matrices as parameters of the activation dtype."""

    name = "plain"

    def linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> PlainLinear:
        """See `WeightFormat`."""
        return PlainLinear(stacked(weights), bias)

    def embedding_and_head(
        self, embedding: Stored, head: Stored | None
    ) -> tuple[Embedding, nn.Module]:
        """See `WeightFormat`. A tied head shares its parameter, so there is one gradient."""
        found, linear = super().embedding_and_head(embedding, head)
        if head is None:
            linear.weight = found.weight
        return found, linear

    def describe(self) -> str:
        """See `WeightFormat`."""
        return f"F.linear in {str(self.dtype).removeprefix('torch.')}"
