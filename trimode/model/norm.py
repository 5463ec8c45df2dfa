"""RMSNorm."""

import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale."""

    def __init__(self, name: str, weight: Tensor, eps: float) -> None:
        """`name`: canonical, without `.weight`."""
        super().__init__()
        self.name = name
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`[..., dim]` -> `[..., dim]`."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
