"""fp32 on CPU: weights packed once into oneDNN's blocked layout.

Twice as fast as `F.linear` at one row. If oneDNN keeps one kernel for all row counts, a row's
result does not depend on its neighbours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimode.model.formats.format import WeightFormat, stacked

_PACK_ROWS = 16
"""Rows that oneDNN packs weights for. 4 to 128 are equally fast, 1 is slower from 2 rows on."""


class OneDnnLinear(nn.Module):
    """fp32 weights in oneDNN's layout; CPU inference only."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


class OneDnnFormat(WeightFormat):
    """Matrices in oneDNN's layout."""

    name = "onednn"

    def linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> OneDnnLinear:
        """See `WeightFormat`."""
        return OneDnnLinear(stacked(weights), bias)

    def describe(self) -> str:
        """See `WeightFormat`."""
        return "oneDNN, fp32 weights packed"
