"""bf16 on CPUs without bf16 instructions: 16-bit weights, fp32 activations and accumulation.

PyTorch's bf16 products fall back to a scalar loop there, ten times slower at 16 rows.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimode.model.formats.format import WeightFormat, stacked


class FbgemmLinear(nn.Module):
    """16-bit weights in FBGEMM's layout; CPU inference only.

    A bf16 weight above 6e-5 in magnitude is exact in fp16; a smaller one is off by at most 3e-8.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of fp16 saturation on every call
            self.packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return torch.ops.quantized.linear_dynamic_fp16(x, self.packed)


class FbgemmFormat(WeightFormat):
    """Matrices in FBGEMM's layout."""

    name = "fbgemm"

    def linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> FbgemmLinear:
        """See `WeightFormat`."""
        return FbgemmLinear(stacked(weights), bias)

    def describe(self) -> str:
        """See `WeightFormat`."""
        return "FBGEMM, 16-bit weights, fp32 accumulation (no bf16 instructions here)"
