"""Attention in chunks of queries, each over those keys alone that some of them see.

PyTorch's kernel for CPUs multiplies all queries with all keys if it is given a mask. Half of a
causal mask is empty, and more of it if a row has several documents. Products of one chunk are also
what a CPU's bf16 instructions are for, which that kernel leaves unused. The backward pass computes
the scores again, so memory is that of one chunk (FlashAttention, arXiv 2205.14135).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trimode.training.autocast import in_autocast_dtype

T = TypeVar("T")
_CHUNK = 64
"""Queries of a chunk: as fast as 128 in bf16 and in fp32."""


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk of queries, and what they see."""

    queries: slice
    keys: tuple[slice, ...]
    """Of each source of keys: from the first one to the last one that a query of some row sees."""
    bias: Tensor
    """Added to the scores: 0, or minus infinity for keys that a query does not see, `[R, 1, q, k]`.
    """


def parts(visible: Sequence[Tensor], chunk: int = _CHUNK) -> list[Part]:
    """Cut masks into chunks of queries.

    Args:
        visible: of each source of keys, bool `[R, Q, L]`; each query sees a key.
        chunk: queries of each.
    """
    found = []
    for start in range(0, visible[0].shape[1], chunk):
        queries = slice(start, start + chunk)
        keys = tuple(_seen(mask[:, queries]) for mask in visible)
        near = [mask[:, queries, some] for mask, some in zip(visible, keys, strict=True)]
        mask = torch.cat(near, dim=-1)[:, None]
        bias = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
        found.append(Part(queries, keys, bias))
    return found


def _seen(mask: Tensor) -> slice:
    """The keys of a mask `[R, q, L]` from the first to the last that is seen."""
    seen = mask.flatten(0, 1).any(0).nonzero()
    return slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, 0)


def attend(
    queries: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], parts: Sequence[Part]
) -> Tensor:
    """What queries see, `[R, H, Q, d]`, in the dtype of autocast if that is on.

    Args:
        queries: `[R, H, Q, d]`.
        keys: of each source, `[R, K, L, d]`; H / K queries share a key.
        values: as keys.
        parts: of the masks; see `parts`.
    """
    tensors = [in_autocast_dtype(x) for x in (queries, *keys, *values)]
    with torch.autocast(queries.device.type, enabled=False):
        return _Attend.apply(parts, *tensors)  # type: ignore[return-value]


def _weights(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Of each key for each query, `[B, G * q, k]`; queries are scaled."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    scores.view(len(bias), -1, *bias.shape[2:]).add_(bias)
    return scores.softmax(-1)


def _near(sources: Sequence[Tensor], part: Part) -> Tensor:
    """Keys or values of a part, `[B, k, d]`."""
    found = [x[:, some] for x, some in zip(sources, part.keys, strict=True)]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


class _Attend(torch.autograd.Function):
    """Axis letters: B = R * K rows and key heads, G = H / K queries of a key."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[Part], queries: Tensor, *sources: Tensor) -> Tensor:  # type: ignore[override]
        heads = _Heads(queries, sources[0])
        keys, values = _halves([x.flatten(0, 1) for x in sources])
        output = torch.empty_like(queries)
        for part in parts:
            weights = _weights(heads.scaled(queries, part), _near(keys, part), part.bias)
            output[:, :, part.queries] = heads.apart(torch.bmm(weights, _near(values, part)))
        ctx.save_for_backward(queries, *keys, *values)
        ctx.heads, ctx.parts = heads, parts
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, *sources = ctx.saved_tensors
        heads: _Heads = ctx.heads
        keys, values = _halves(sources)
        to_queries = torch.empty_like(queries)
        to_keys, to_values = _halves(
            [_Sum(x, wanted) for x, wanted in zip(sources, ctx.needs_input_grad[2:], strict=True)]
        )
        for part in ctx.parts:
            near, given = _near(keys, part), heads.together(gradient, part)
            scaled = heads.scaled(queries, part)
            weights = _weights(scaled, near, part.bias)
            to_weights = torch.bmm(given, _near(values, part).transpose(1, 2))
            to_scores = torch.ops.aten._softmax_backward_data(
                to_weights, weights, -1, weights.dtype
            )
            to_queries[:, :, part.queries] = heads.apart(torch.bmm(to_scores, near)) * heads.scale
            start = 0
            for some, key_sum, value_sum in zip(part.keys, to_keys, to_values, strict=True):
                columns = slice(start, start := start + some.stop - some.start)
                key_sum.add(some, to_scores[:, :, columns], scaled)
                value_sum.add(some, weights[:, :, columns], given)
        return None, to_queries, *(x.found(len(queries)) for x in (*to_keys, *to_values))


def _halves(both: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """What keys have, and what values have."""
    middle = len(both) // 2
    return both[:middle], both[middle:]


class _Sum:
    """The gradient of a source of keys or values `[B, L, d]`, if it is wanted."""

    def __init__(self, source: Tensor, wanted: bool) -> None:
        dtype = torch.promote_types(source.dtype, torch.float32)
        self._dtype = source.dtype
        self._sum = torch.zeros_like(source, dtype=dtype) if wanted else None

    def add(self, some: slice, factors: Tensor, rows: Tensor) -> None:
        """Add to some keys: rows `[B, G * q, d]`, times a factor of each `[B, G * q, k]`."""
        if self._sum is not None and some.stop > some.start:
            self._sum[:, some] += torch.bmm(factors.transpose(1, 2), rows)

    def found(self, rows: int) -> Tensor | None:
        """`[R, K, L, d]`."""
        return None if self._sum is None else self._sum.to(self._dtype).unflatten(0, (rows, -1))


class _Heads:
    """Puts the queries of a key together: `[R, H, q, d]` to `[B, G * q, d]`, and back."""

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
