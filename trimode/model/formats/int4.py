"""int4 on CPU: weights in groups as GGUF files store them, activations as int8 in groups of 32.

A group's product is an exact integer, and groups are added in order, so a row's result never
depends on its neighbours. Matrices that are stored as floats get four bits a weight; embedding,
head and adapters get eight.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimode.model.formats.format import (
    HeadEmbedding,
    Parts,
    SplitDelta,
    Stored,
    WeightFormat,
    stored_embedding,
)
from trimode.model.native import library, structs
from trimode.model.native.cores import threads
from trimode.model.quantised import (
    BLOCK_KINDS,
    KIND_NUMBERS,
    QuantisedMatrix,
    quantise,
)

GROUP = 32
"""Activations that share a scale."""


class GroupedLinear(nn.Module):
    """Weights in blocks of a few bits, products of exact integers; CPU inference only."""

    def __init__(
        self, weights: Sequence[QuantisedMatrix], bias: Tensor | None, *, packs: bool
    ) -> None:
        """`weights`: stacked along their outputs; they may be of several kinds.

        With `packs` they are laid out for the C++ library, at once, so that a mapped file's bytes
        are read only once.
        """
        super().__init__()
        self.out_features, self.in_features = sum(map(len, weights)), weights[0].shape[1]
        self.bias = bias
        self.blocks: tuple[QuantisedMatrix, ...] | None = None if packs else tuple(weights)
        """As they are stored; None once packed."""
        self.strips: Tensor | None = None
        """Where the C++ library finds them: `structs.Strip`s, int64 `[n, 5]`."""
        self._packed: list[Tensor] = []
        if packs:
            self._pack(weights)

    def _pack(self, weights: Sequence[QuantisedMatrix]) -> None:
        native = library()
        assert native is not None
        lanes, first = native.trimode_lanes(), 0
        strips: list[Tensor] = []
        for weight in weights:
            kind, blocks = KIND_NUMBERS[weight.kind], weight.blocks
            assert blocks.stride(1) == 1, "a row's bytes lie together"
            size = native.trimode_strip_bytes(kind, self.in_features)
            lower = native.trimode_lower_bytes(kind, self.in_features)
            count = -(-len(weight) // lanes)
            packed = torch.empty(count * (size + lower), dtype=torch.uint8)
            native.trimode_pack(
                kind,
                blocks.data_ptr(),
                blocks.stride(0),
                len(weight),
                self.in_features,
                packed.data_ptr(),
                threads(),
            )
            self._packed.append(packed)
            number, starts = torch.arange(count), torch.arange(0, len(weight), lanes)
            fields = (
                packed.data_ptr() + number * size,
                packed.data_ptr() + count * size + number * lower,
                torch.full_like(starts, kind),
                first + starts,
                (len(weight) - starts).clamp_(max=lanes),
            )
            strips.append(torch.stack(fields, dim=1))
            first += len(weight)
        self.strips = torch.cat(strips)

    @property
    def weight_bytes(self) -> int:
        """Bytes that a product reads of it."""
        parts = self._packed if self.blocks is None else [part.blocks for part in self.blocks]
        return sum(part.nbytes for part in parts)

    def native(self) -> structs.Linear:
        """The linear as the C++ library takes it; it must be packed and live on."""
        assert self.strips is not None
        return structs.Linear(
            out=self.out_features,
            in_=self.in_features,
            bias=None if self.bias is None else self.bias.data_ptr(),
            strip=ctypes.cast(self.strips.data_ptr(), ctypes.POINTER(structs.Strip)),
            strips=len(self.strips),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`, with PyTorch's operators."""
        assert self.blocks is not None, "packed weights are for the C++ library"
        rows = quantise_rows(x)
        parts = [_product(rows, weight) for weight in self.blocks]
        y = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return y if self.bias is None else y + self.bias

    def rows(self, index: Tensor) -> Tensor:
        """fp32 weights of outputs `index` `[n]`, `[n, in]`: a tied head's embeddings."""
        if self.blocks is not None:
            (weight,) = self.blocks
            return weight.floats(index)
        native = library()
        assert native is not None
        index = index.contiguous()
        found = torch.empty(len(index), self.in_features)
        linear = self.native()
        native.trimode_rows(ctypes.byref(linear), index.data_ptr(), len(index), found.data_ptr())
        return found


class QuantisedRows:
    """Activations as int8 in groups of 32."""

    def __init__(self, values: Tensor, scale: Tensor) -> None:
        self.values = values
        """fp32 whole numbers `[T, groups, 32]`."""
        self.scale = scale
        """fp32 `[T, groups]`."""


def quantise_rows(x: Tensor) -> QuantisedRows:
    """Quantise activations `[T, in]`; a last group that is not full gets zeros."""
    filled = nn.functional.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    top = torch.maximum(filled.amax(-1), -filled.amin(-1))
    most = torch.full_like(top, 127.0)  # number / tensor would be a rounded reciprocal
    inverse = torch.where(top > 0, most / top, 0.0)
    return QuantisedRows((filled * inverse[..., None]).round_(), top / most)


def _product(rows: QuantisedRows, weight: QuantisedMatrix) -> Tensor:
    """`[T, out]`: groups in order, each rounded as the C++ library does."""
    kind = BLOCK_KINDS[weight.kind]
    groups = weight.groups()
    y = torch.zeros(len(rows.values), len(weight))
    width = kind.group
    for i in range(groups.scale.shape[1]):
        outer, start = i * width // GROUP, i * width % GROUP
        activations = rows.values[:, outer, start : start + width]
        integers = groups.values[:, i * width : (i + 1) * width].float() - kind.offset
        # Whole numbers below 2**24: the sums are exact in any order.
        whole = activations.double() @ integers.double().T
        scale = rows.scale[:, outer, None]
        part = whole.float() * (groups.scale[:, i] * scale)
        if groups.minimum is not None:
            part = part + groups.minimum[:, i] * (scale * activations.sum(-1, keepdim=True))
        y = y + part
    return y


class Int4Format(WeightFormat):
    """Matrices in blocks, activations in fp32 between them."""

    name = "int4"
    independent_rows = True

    def __init__(self, device: str = "cpu", *, packs: bool) -> None:
        """`packs`: for the C++ library; PyTorch's operators run the blocks as they are stored."""
        super().__init__(torch.float32, device)
        self.packs = packs
        self._kinds: set[str] = set()

    @property
    def kv_dtype(self) -> torch.dtype:
        """bf16, as int8's."""
        return torch.bfloat16

    def matrix(self, stored: Tensor | QuantisedMatrix, *, copy: bool = False) -> QuantisedMatrix:  # noqa: ARG002
        """Blocks as they are stored; floats get four bits."""
        if isinstance(stored, QuantisedMatrix):
            return stored
        return quantise(stored, "Q4_1")

    def linear(self, weights: Sequence[QuantisedMatrix], bias: Tensor | None) -> GroupedLinear:
        """See `WeightFormat`."""
        self._kinds.update(weight.kind for weight in weights)
        return GroupedLinear(weights, bias, packs=self.packs)

    def delta(self, parts: Parts, sizes: Sequence[int], scale: float) -> SplitDelta | None:
        """See `WeightFormat`. Adapters are small, so they get eight bits."""

        def linear(weights: Sequence[Tensor], bias: None) -> GroupedLinear:
            return self.linear([_eight_bits(weight) for weight in weights], bias)

        return SplitDelta.of(parts, sizes, scale, GROUP, linear)

    def embedding_and_head(
        self, embedding: Stored, head: Stored | None
    ) -> tuple[nn.Module, GroupedLinear]:
        """A tied head serves as both. A separate embedding stays as it is stored."""
        if head is None:
            linear = self.linear([_eight_bits(embedding())], None)
            return HeadEmbedding(linear), linear
        kept = stored_embedding(embedding(), self.dtype)
        return kept, self.linear([_eight_bits(head())], None)

    def describe(self) -> str:
        """See `WeightFormat`."""
        kinds = ", ".join(sorted(self._kinds)) or "4 bits"
        return f"weights in groups ({kinds}), 8-bit activations"


def _eight_bits(stored: Tensor | QuantisedMatrix) -> QuantisedMatrix:
    """Blocks as they are stored; floats get eight bits."""
    return stored if isinstance(stored, QuantisedMatrix) else quantise(stored, "Q8_0")
