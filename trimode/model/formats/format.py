"""What a weight format decides: how linears, adapters, embedding and head are stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.model.adapter import LowRankDelta
from trimode.model.quantised import QuantisedMatrix, as_floats

Parts = Sequence[tuple[Tensor, Tensor] | None]
"""(A `[rank, in]`, B `[out, rank]`) of each fused linear; None if the adapter leaves it alone."""

Stored = Callable[[], Tensor | QuantisedMatrix]
"""Reads a matrix as it is stored. It is called when the matrix is needed, so that no two of them
are held at once."""


class Embedding(nn.Module):
    """Token embeddings as a matrix of their own."""

    def __init__(self, weight: Tensor, dtype: torch.dtype | None = None) -> None:
        """`weight` `[V, D]` of any float dtype; rows come out in `dtype`, by default as stored."""
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings `[T, D]` of tokens `[T]`."""
        return self._converted(F.embedding(tokens, self.weight))

    def matrix(self) -> Tensor:
        """All embeddings, `[V, D]`."""
        return self._converted(self.weight.detach())

    def _converted(self, rows: Tensor) -> Tensor:
        return rows if self.dtype is None else rows.to(self.dtype)


class StoredEmbedding(nn.Module):
    """Token embeddings, read by rows from the blocks of a mapped file."""

    def __init__(self, stored: QuantisedMatrix) -> None:
        super().__init__()
        self.stored = stored

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings fp32 `[T, D]` of tokens `[T]`."""
        return self.stored.floats(tokens)

    def matrix(self) -> Tensor:
        """All embeddings `[V, D]`, a copy in fp32."""
        return self.stored.floats()


def stored_embedding(stored: Tensor | QuantisedMatrix, dtype: torch.dtype) -> nn.Module:
    """An embedding that is not quantised anew; its rows come out in `dtype`."""
    if isinstance(stored, QuantisedMatrix):
        return StoredEmbedding(stored)
    # A copy: a view would keep the whole mapped file in memory beside the packed weights.
    return Embedding(stored.clone(), dtype)


class HeadEmbedding(nn.Module):
    """Token embeddings, read from a quantised head that serves as both."""

    def __init__(self, head: Any) -> None:
        """`head`: its `rows(index)` are the embeddings in fp32."""
        super().__init__()
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings fp32 `[T, D]` of tokens `[T]`."""
        return self.head.rows(tokens)

    def matrix(self) -> Tensor:
        """All embeddings `[V, D]`, a copy in fp32."""
        return self.head.rows(torch.arange(self.head.out_features))


class SplitDelta(nn.Module):
    """A low-rank delta of quantised linears; each fused part has its own `up`."""

    def __init__(
        self,
        down: nn.Module,
        ups: Sequence[nn.Module],
        places: Sequence[tuple[slice, slice]],
        out_features: int,
    ) -> None:
        super().__init__()
        self.down, self.ups = down, nn.ModuleList(ups)
        self.places = list(places)
        """Output rows and ranks of each part."""
        self.out_features = out_features

    @classmethod
    def of(
        cls,
        parts: Parts,
        sizes: Sequence[int],
        scale: float,
        multiple: int,
        linear: Callable[[Sequence[Tensor], None], nn.Module],
    ) -> Self | None:
        """See `LowRankDelta.fused`. Each part's rank is filled up to a multiple of `multiple`.

        Ranks of zeros change nothing. With them the C++ pass runs every adapter, so AR's bits do
        not depend on which one is loaded.
        """
        downs, ups, places = [], [], []
        for part, size, end in zip(parts, sizes, accumulate(sizes), strict=True):
            if part is None:
                continue
            fill, start = -len(part[0]) % multiple, sum(map(len, downs))
            downs.append(F.pad(part[0], (0, 0, 0, fill)))
            ups.append(F.pad(part[1] * scale, (0, fill)))
            places.append((slice(end - size, end), slice(start, start + len(downs[-1]))))
        if not downs:
            return None
        return cls(linear(downs, None), [linear([up], None) for up in ups], places, sum(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        low = self.down(x)
        y = x.new_zeros(len(x), self.out_features)
        for (rows, ranks), up in zip(self.places, self.ups, strict=True):
            y[:, rows] = up(low[:, ranks])
        return y


class WeightFormat(ABC):
    """How the matrices of a model are stored and multiplied, on one device.

    A format that keeps matrices in the activation dtype need only define `linear` and `describe`.
    """

    name: ClassVar[str]
    independent_rows: ClassVar[bool] = False
    """Whether it promises that a row's result does not depend on the other rows of a pass."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        """`dtype`: of activations, norms and biases."""
        self.dtype, self.device = dtype, device

    @property
    def kv_dtype(self) -> torch.dtype:
        """The dtype of the KV cache."""
        return self.dtype

    @abstractmethod
    def linear(self, weights: Sequence[Tensor], bias: Tensor | None) -> nn.Module:
        """A linear of `weights` `[out, in]`, stacked along their outputs; maps `[T, in]`."""

    @abstractmethod
    def describe(self) -> str:
        """The format in words."""

    def matrix(self, stored: Tensor | QuantisedMatrix, *, copy: bool = False) -> Tensor:
        """A stored matrix as `linear` and `embedding_and_head` take it."""
        return as_floats(stored).to(device=self.device, dtype=self.dtype, copy=copy)

    def delta(self, parts: Parts, sizes: Sequence[int], scale: float) -> nn.Module | None:
        """An adapter's share of fused linears of `sizes` outputs; None if it has none."""
        return LowRankDelta.fused(parts, sizes, scale)

    def embedding_and_head(self, embedding: Stored, head: Stored | None) -> tuple[Any, nn.Module]:
        """The embedding module and the output head, the largest matrices of a model.

        Args:
            embedding: reads the stored one, `[V, D]`.
            head: reads the stored one, `[V, D]`; None if it is tied to the embedding.
        """
        # A copy: a view would keep the whole mapped file in memory beside the packed weights.
        kept = self.matrix(embedding(), copy=True)
        rows = kept if head is None else self.matrix(head())
        return Embedding(kept), self.linear([rows], None)


def stacked(weights: Sequence[Tensor]) -> Tensor:
    """Matrices `[out, in]`, stacked along their outputs."""
    return torch.cat(list(weights)) if len(weights) > 1 else weights[0]
