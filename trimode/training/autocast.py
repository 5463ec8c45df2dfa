"""What autocast does to a tensor."""

import torch
from torch import Tensor


def in_autocast_dtype(tensor: Tensor) -> Tensor:
    """Convert a tensor as autocast would, once instead of at each product."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor
