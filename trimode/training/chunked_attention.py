"""Attention in chunks of queries, each over those keys alone that some of them see.

PyTorch's kernel for CPUs multiplies all queries with all keys if it is given a mask. Half of a
causal mask is empty, and more of it if a row has several documents. Products of one chunk are also
what a CPU's bf16 instructions are for, which that kernel leaves unused. The backward pass computes
the scores again, so memory is that of one chunk (FlashAttention, arXiv 2205.14135).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK = 64
"""Queries of a chunk: as fast as 128 in bf16 and in fp32."""


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk of queries, and what they see."""

    queries: slice
    keys: slice
    """From the first one to the last one that a query of some row sees."""
    bias: Tensor
    """Added to the scores: 0, or minus infinity for keys that a query does not see, `[R, 1, q, k]`.
    """


def parts(visible: Tensor, chunk: int = _CHUNK) -> list[Part]:
    """Cut a mask into chunks of queries.

    Args:
        visible: bool `[R, L, L]`; each query sees a key.
        chunk: queries of each.
    """
    found = []
    for start in range(0, visible.shape[1], chunk):
        queries = slice(start, start + chunk)
        seen = visible[:, queries].flatten(0, 1).any(0).nonzero()
        keys = slice(int(seen[0]), int(seen[-1]) + 1)
        mask = visible[:, None, queries, keys]
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
        found.append(Part(queries, keys, bias))
    return found


def attend(queries: Tensor, keys: Tensor, values: Tensor, parts: Sequence[Part]) -> Tensor:
    """What queries see, `[R, H, L, d]`, in the dtype of autocast if that is on.

    Args:
        queries: `[R, H, L, d]`.
        keys: `[R, K, L, d]`; H / K queries share a key.
        values: as keys.
        parts: of the mask; see `parts`.
    """
    device = queries.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        queries, keys, values = (x.to(dtype) for x in (queries, keys, values))
    with torch.autocast(device, enabled=False):
        return _Attend.apply(queries, keys, values, parts)  # type: ignore[return-value]


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Of each key for each query `[R * K, G * q, k]`; queries are scaled."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    scores.view(len(bias), -1, *bias.shape[2:]).add_(bias)
    return scores.softmax(-1)


class _Attend(torch.autograd.Function):
    """Axis letters: B = R * K rows and key heads, G = H / K queries of a key."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, parts: Sequence[Part]
    ) -> Tensor:
        heads = _Heads(queries, keys)
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        output = torch.empty_like(queries)
        for part in parts:
            weights = _weights(heads.scaled(queries, part), keys[:, part.keys], part.bias)
            seen = torch.bmm(weights, values[:, part.keys])
            output[:, :, part.queries] = heads.apart(seen)
        ctx.save_for_backward(queries, keys, values)
        ctx.heads, ctx.parts = heads, parts
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        queries, keys, values = ctx.saved_tensors
        heads: _Heads = ctx.heads
        to_queries = torch.empty_like(queries)
        sums = torch.promote_types(keys.dtype, torch.float32)
        to_keys = torch.zeros_like(keys, dtype=sums)
        to_values = torch.zeros_like(values, dtype=sums)
        for part in ctx.parts:
            near, given = keys[:, part.keys], heads.together(gradient, part)
            scaled = heads.scaled(queries, part)
            weights = _weights(scaled, near, part.bias)
            to_values[:, part.keys] += torch.bmm(weights.transpose(1, 2), given)
            to_weights = torch.bmm(given, values[:, part.keys].transpose(1, 2))
            to_scores = torch.ops.aten._softmax_backward_data(
                to_weights, weights, -1, weights.dtype
            )
            to_queries[:, :, part.queries] = heads.apart(torch.bmm(to_scores, near)) * heads.scale
            to_keys[:, part.keys] += torch.bmm(to_scores.transpose(1, 2), scaled)
        keys_shape = (len(queries), -1, *keys.shape[1:])
        to_keys, to_values = (x.to(keys.dtype).view(keys_shape) for x in (to_keys, to_values))
        return to_queries, to_keys, to_values, None


class _Heads:
    """Puts the queries of a key together: `[R, H, q, d]` to `[R * K, G * q, d]`, and back."""

    def __init__(self, queries: Tensor, keys: Tensor) -> None:
        self._rows, self._heads, _, self._size = queries.shape
        self._key_heads = keys.shape[1]
        self.scale = self._size**-0.5

    def together(self, heads: Tensor, part: Part) -> Tensor:
        """A part of all queries."""
        return heads[:, :, part.queries].reshape(self._rows * self._key_heads, -1, self._size)

    def scaled(self, queries: Tensor, part: Part) -> Tensor:
        """The same, times the scale of scores."""
        return self.together(queries, part) * self.scale

    def apart(self, grouped: Tensor) -> Tensor:
        """The reverse."""
        return grouped.view(self._rows, self._heads, -1, self._size)
