"""What a weight format decides: how linears, adapters, embedding and head are stored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.model.adapter import LowRankDelta
from trimode.model.quantised import QuantisedMatrix, as_floats

Parts = Sequence[tuple[Tensor, Tensor] | None]
"""(A `[rank, in]`, B `[out, rank]`) of each fused linear; None if the adapter leaves it alone."""

Stored = Callable[[], Tensor]
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


class WeightFormat(ABC):
    """How the matrices of a model are stored and multiplied, on one device.

    A format that keeps matrices in the activation dtype need only define `linear` and `describe`.
    """

    name: ClassVar[str]

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
