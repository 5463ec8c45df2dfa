"""Norms with a learned scale."""

import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.Module):
    """A norm that is saved under a canonical name."""

    def __init__(self, name: str, weight: Tensor, eps: float) -> None:
        """`name`: canonical, without `.weight`."""
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps


class RMSNorm(Norm):
    """Root-mean-square norm."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class OffsetRMSNorm(Norm):
    """RMSNorm whose scale is 1 + weight (Gemma), computed in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        scale = 1.0 + self.weight.float()
        return F.rms_norm(x.float(), scale.shape, scale, self.eps).to(x.dtype)


class LayerNorm(Norm):
    """Mean and variance norm with a bias."""

    def __init__(self, name: str, weight: Tensor, bias: Tensor, eps: float) -> None:
        """`name`: canonical, without `.weight`."""
        super().__init__(name, weight, eps)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
