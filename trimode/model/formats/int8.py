"""int8 on CPU: one scale per output, activations quantised row by row to 12 bits, int32 sums.

Sums of integers are exact, so a row's result never depends on its neighbours.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trimode.model.formats.format import (
    HeadEmbedding,
    Parts,
    SplitDelta,
    Stored,
    WeightFormat,
    stored_embedding,
)
from trimode.model.native.structs import (
    ACTIVATION_LEVELS,
    FEATURE_MULTIPLE,
    TILE_INPUTS,
    TILE_OUTPUTS,
    WEIGHT_LEVELS,
)
from trimode.model.quantised import QuantisedMatrix, as_floats

_QUANTISED_AT_ONCE = 2**16
"""Weights that are turned from floats into int8 at a time."""


def activation_levels(features: int) -> int:
    """Largest quantised activation: 12 bits, or what an int32 sum over `features` can hold.

    The C++ pass multiplies 16-bit numbers either way, and the extra bits keep answers closer to
    fp32's.
    """
    return min(ACTIVATION_LEVELS, (2**31 - 1) // (WEIGHT_LEVELS * features))


def quantise(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Rows as whole numbers `[n, k]` in -levels..levels and a scale each `[n]`, both fp32."""
    top = torch.maximum(x.amax(-1), -x.amin(-1))
    most = torch.full_like(top, levels)  # number / tensor would be a rounded reciprocal
    inverse = torch.where(top > 0, most / top, 0.0)
    return (x * inverse[:, None]).round_(), top / most


class Int8Linear(nn.Module):
    """int8 weights, 12-bit activations, exact int32 products; CPU inference only."""

    def __init__(self, weights: Sequence[Tensor | QuantisedMatrix], bias: Tensor | None) -> None:
        """`weights`: of any float dtype, or in blocks; they are stacked along their outputs."""
        super().__init__()
        parts = list(weights)
        self.out_features, self.in_features = sum(map(len, parts)), parts[0].shape[1]
        self.scale = torch.empty(self.out_features)
        values = torch.empty(self.out_features, self.in_features, dtype=torch.int8)
        # A few rows at a time, so that the floats stay in the CPU's cache and no weight is ever
        # held in fp32 as a whole.
        rows = max(1, _QUANTISED_AT_ONCE // self.in_features)
        start = 0
        for piece in (piece for part in parts for piece in part.split(rows)):
            place = slice(start, start + len(piece))
            floats = as_floats(piece).float()
            values[place], self.scale[place] = quantise(floats, WEIGHT_LEVELS)
            start = place.stop
        self.weight: Tensor | None = values
        """`[out, in]`; None once packed."""
        self.packed: Tensor | None = None
        """`[out / 16, in / 4, 16, 4]`, padded with zeros: the order in which tiles read it."""
        self.bias = bias

    @property
    def weight_bytes(self) -> int:
        """Bytes that a product reads of it."""
        stored = self.packed if self.weight is None else self.weight
        assert stored is not None
        return stored.nbytes + self.scale.nbytes

    def pack(self) -> None:
        """Lay the weights out as tiles of 16 outputs and 64 inputs, instead of row by row."""
        if self.weight is None:
            return
        fill = (0, -self.in_features % TILE_INPUTS, 0, -self.out_features % TILE_OUTPUTS)
        filled = F.pad(self.weight, fill) if any(fill) else self.weight
        # Four int8 are moved together.
        fours = filled.view(torch.int32).view(-1, TILE_OUTPUTS, filled.shape[1] // 4)
        tiles = fours.transpose(1, 2).contiguous()
        self.weight, self.packed = None, tiles.view(torch.int8).view(*tiles.shape, 4)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        values, scale = quantise(x, activation_levels(x.shape[1]))
        high = torch.round(values / 64)  # two int8 halves: PyTorch multiplies no wider integers
        low = values - 64 * high
        weight = self._plain_rows(slice(None)).T
        product = 64 * _multiply(high, weight) + _multiply(low, weight)
        y = product.float() * (scale[:, None] * self.scale)
        return y if self.bias is None else y + self.bias

    def rows(self, index: Tensor) -> Tensor:
        """fp32 weights of outputs `index` `[n]`, `[n, in]`: a tied head's embeddings."""
        return self._plain_rows(index).float() * self.scale[index, None]

    def _plain_rows(self, index: Tensor | slice) -> Tensor:
        """int8 weights of outputs `index`, `[n, in]`."""
        if self.weight is not None:
            if isinstance(index, slice):
                return self.weight[index]
            # By NumPy: PyTorch's OpenMP threads would wake, and spin beside those of the pass.
            return torch.from_numpy(self.weight.numpy().take(index.numpy(), axis=0))
        assert self.packed is not None
        if isinstance(index, slice):
            index = torch.arange(self.out_features)[index]
        fours = self.packed.view(torch.int32)[..., 0]  # moved together
        found = fours[index // TILE_OUTPUTS, :, index % TILE_OUTPUTS].contiguous()
        return found.view(torch.int8)[:, : self.in_features]


def _multiply(values: Tensor, weight: Tensor) -> Tensor:
    """Exact products of whole numbers in int8's range, int32."""
    return torch.ops.aten._int_mm(values.to(torch.int8), weight)


class Int8Format(WeightFormat):
    """Matrices in int8, activations in fp32 between them."""

    name = "int8"
    independent_rows = True

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(torch.float32, device)

    @property
    def kv_dtype(self) -> torch.dtype:
        """bf16: coarser than fp32, but finer than the error that int8 weights make anyway."""
        return torch.bfloat16

    def linear(
        self, weights: Sequence[Tensor | QuantisedMatrix], bias: Tensor | None
    ) -> Int8Linear:
        """See `WeightFormat`."""
        return Int8Linear(weights, bias)

    def matrix(
        self, stored: Tensor | QuantisedMatrix, *, copy: bool = False
    ) -> Tensor | QuantisedMatrix:
        """The matrix as it is stored: floats of any dtype, and blocks, are quantised alike.

        An embedding that is not quantised is read by rows, in its stored dtype. That of a bf16
        checkpoint would take twice the memory in fp32, for the same numbers.
        """
        if isinstance(stored, QuantisedMatrix):
            return stored
        return stored.to(device=self.device, copy=copy)

    def delta(self, parts: Parts, sizes: Sequence[int], scale: float) -> SplitDelta | None:
        """See `WeightFormat`."""
        return SplitDelta.of(parts, sizes, scale, FEATURE_MULTIPLE, self.linear)

    def embedding_and_head(
        self, embedding: Stored, head: Stored | None
    ) -> tuple[nn.Module, Int8Linear]:
        """A tied head serves as both. A separate embedding stays as it is stored."""
        if head is None:
            linear = self.linear([self.matrix(embedding())], None)
            return HeadEmbedding(linear), linear
        kept = stored_embedding(embedding(), self.dtype)
        return kept, self.linear([self.matrix(head())], None)

    def describe(self) -> str:
        """See `WeightFormat`."""
        return "int8 weights, 12-bit activations"
