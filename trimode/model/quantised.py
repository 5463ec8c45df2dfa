"""Matrices in blocks of a few bits a weight, as GGUF files store them.

A block holds groups of 16 or 32 weights. A weight is `scale * (value - offset) + minimum`: `value`
is a whole number of a few bits, `scale` and `minimum` belong to its group, `offset` to the kind of
block.

Source of the layouts: ggml's `ggml-common.h` and `gguf-py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trimode.model.native import library
from trimode.model.native.cores import threads


class Groups(NamedTuple):
    """Decoded blocks of n rows."""

    values: Tensor
    """uint8 `[n, in]`."""
    scale: Tensor
    """fp32 `[n, in / group]`."""
    minimum: Tensor | None
    """fp32 `[n, in / group]`; None if the kind has none."""


class BlockKind(NamedTuple):
    """How one of ggml's types stores weights."""

    weights: int
    """Of a block."""
    size: int
    """Bytes of a block."""
    bits: int
    """Of a value."""
    group: int
    """Weights that share a scale."""
    offset: int
    halves: tuple[int, ...]
    """Bytes at which a block's fp16 numbers begin."""
    decode: Callable[[Tensor], Groups]
    """Blocks uint8 `[n, size]` -> their groups, each block a row."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix:
    """Rows of blocks. The bytes are usually a view of a mapped file."""

    kind: str
    """A key of `BLOCK_KINDS`."""
    blocks: Tensor
    """uint8 `[out, bytes of a row]`."""
    columns: int | None = None
    """Weights of a row, if they do not fill its last block."""

    def __len__(self) -> int:
        """Rows of the matrix."""
        return len(self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`, as of the matrix of floats."""
        kind = BLOCK_KINDS[self.kind]
        full = self.blocks.shape[1] // kind.size * kind.weights
        return len(self.blocks), self.columns or full

    def rows(self, index: Tensor | slice) -> "QuantisedMatrix":
        """Some rows, in the given order."""
        return replace(self, blocks=self.blocks[index])

    def split(self, rows: int) -> Iterator["QuantisedMatrix"]:
        """Pieces of so many rows; the last one may be smaller."""
        return (replace(self, blocks=blocks) for blocks in self.blocks.split(rows))

    def groups(self) -> Groups:
        """The whole numbers, scales and minima."""
        kind = BLOCK_KINDS[self.kind]
        values, scale, minimum = kind.decode(self.blocks.reshape(-1, kind.size))
        rows = len(self)
        return Groups(
            values.view(rows, -1),
            scale.view(rows, -1),
            None if minimum is None else minimum.view(rows, -1),
        )

    def floats(self, index: Tensor | None = None) -> Tensor:
        """The matrix in fp32 `[out, in]`, bit for bit as llama.cpp dequantises it.

        Args:
            index: rows to return, int64 `[n]`; all of them by default.
        """
        native = library()
        if native is None:
            chosen = self if index is None else self.rows(index)
            return chosen._decoded()[:, : self.shape[1]]
        rows = len(self) if index is None else len(index)
        found = torch.empty(rows, self.shape[1])
        index = None if index is None else index.contiguous()
        native.trimode_unpack(
            KIND_NUMBERS[self.kind],
            self.blocks.data_ptr(),
            self.blocks.stride(0),
            None if index is None else index.data_ptr(),
            rows,
            self.shape[1],
            found.data_ptr(),
            threads(),
        )
        return found

    def _decoded(self) -> Tensor:
        kind = BLOCK_KINDS[self.kind]
        values, scale, minimum = self.groups()
        grouped = values.view(len(self), -1, kind.group).float() - kind.offset
        grouped *= scale[..., None]
        if minimum is not None:
            grouped += minimum[..., None]
        return grouped.flatten(1)

    def is_finite(self) -> bool:
        """Whether all its weights are finite numbers."""
        kind = BLOCK_KINDS[self.kind]
        blocks = self.blocks.reshape(-1, kind.size)
        return all(bool(_half(blocks, at).isfinite().all()) for at in kind.halves)


def as_floats(weight: Tensor | QuantisedMatrix) -> Tensor:
    """A stored weight as a tensor of floats."""
    return weight.floats() if isinstance(weight, QuantisedMatrix) else weight


def _half(blocks: Tensor, at: int) -> Tensor:
    """The fp16 at byte `at` of each block, fp32 `[n, 1]`."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """`[n, k]` bytes -> `[n, 2 k]`: all low halves, then all high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=1)


def _bits(packed: Tensor) -> Tensor:
    """`[n, k]` bytes -> their bits `[n, 8 k]`, the lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (packed[..., None] >> shifts & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 2:]), _half(blocks, 0), None)


def _q4_1(blocks: Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2))


def _q5_0(blocks: Tensor) -> Groups:
    values = _nibbles(blocks[:, 6:]) | _bits(blocks[:, 2:6]) << 4
    return Groups(values, _half(blocks, 0), None)


def _q5_1(blocks: Tensor) -> Groups:
    values = _nibbles(blocks[:, 8:]) | _bits(blocks[:, 4:8]) << 4
    return Groups(values, _half(blocks, 0), _half(blocks, 2))


def _q8_0(blocks: Tensor) -> Groups:
    # Two's complement to an offset of 128.
    return Groups(blocks[:, 2:] ^ 128, _half(blocks, 0), None)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima `[n, 8]` of Q4_K and Q5_K: 6 bits each, spread over 12 bytes."""
    packed = blocks[:, 4:16]
    first, second, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, both & 15 | first >> 6 << 4), dim=1)
    minima = torch.cat((second & 63, both >> 4 | second >> 6 << 4), dim=1)
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q4_k(blocks: Tensor) -> Groups:
    # 32 bytes hold two groups: the low halves, then the high ones.
    values = _nibbles(blocks[:, 16:].reshape(-1, 32)).view(len(blocks), 256)
    return Groups(values, *_k_scales(blocks))


def _q5_k(blocks: Tensor) -> Groups:
    low = _nibbles(blocks[:, 48:].reshape(-1, 32)).view(len(blocks), 8, 32)
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    high = blocks[:, None, 16:48] >> shifts & 1  # bit i of a byte belongs to group i
    return Groups((low | high << 4).view(len(blocks), 256), *_k_scales(blocks))


def _q6_k(blocks: Tensor) -> Groups:
    # Two halves of 128 weights: 64 bytes of low bits, 32 bytes of high ones.
    low = blocks[:, :128].reshape(-1, 64)
    low = torch.cat((low & 15, low >> 4), dim=1).view(-1, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = blocks[:, 128:192].reshape(-1, 1, 32) >> shifts & 3
    values = (low | high << 4).view(len(blocks), 256)
    return Groups(values, _half(blocks, 208) * blocks[:, 192:208].view(torch.int8), None)


BLOCK_KINDS = {
    "Q4_0": BlockKind(32, 18, 4, 32, 8, (0,), _q4_0),
    "Q4_1": BlockKind(32, 20, 4, 32, 0, (0, 2), _q4_1),
    "Q5_0": BlockKind(32, 22, 5, 32, 16, (0,), _q5_0),
    "Q5_1": BlockKind(32, 24, 5, 32, 0, (0, 2), _q5_1),
    "Q8_0": BlockKind(32, 34, 8, 32, 128, (0,), _q8_0),
    "Q4_K": BlockKind(256, 144, 4, 32, 0, (0, 2), _q4_k),
    "Q5_K": BlockKind(256, 176, 5, 32, 0, (0, 2), _q5_k),
    "Q6_K": BlockKind(256, 210, 6, 16, 32, (208,), _q6_k),
}
"""By ggml's names: the types that are computed with as they are stored."""
KIND_NUMBERS = {kind: number for number, kind in enumerate(BLOCK_KINDS)}
"""The kinds' numbers in the C++ library."""

_FLOAT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Their numbers in the C++ library."""
_AT_ONCE = 2**16
"""Weights that PyTorch's operators quantise at a time: the floats stay in the CPU's cache."""


def quantise(weight: Tensor, kind: str) -> QuantisedMatrix:
    """A matrix `[out, in]` of floats in blocks of a kind: `Q4_1` or `Q8_0`.

    Q8_0 is to the nearest. Q4_1 takes for each group the best of a few scales and minima by squared
    error, each by least squares; to the nearest is one of them. Rows whose length is not a multiple
    of 32 get zeros at their end.
    """
    columns = weight.shape[1]
    size = -(-columns // 32) * BLOCK_KINDS[kind].size
    blocks = torch.empty(len(weight), size, dtype=torch.uint8)
    native = library()
    if native is None or weight.dtype not in _FLOAT_TYPES:
        _quantise_by_operators(weight, kind, blocks)
    else:
        weight = weight.contiguous()
        native.trimode_quantise(
            KIND_NUMBERS[kind],
            _FLOAT_TYPES[weight.dtype],
            weight.data_ptr(),
            weight.stride(0) * weight.element_size(),
            len(weight),
            columns,
            blocks.data_ptr(),
            threads(),
        )
    return QuantisedMatrix(kind, blocks, columns if columns % 32 else None)


def _quantise_by_operators(weight: Tensor, kind: str, blocks: Tensor) -> None:
    encode = {"Q4_1": _to_q4_1, "Q8_0": _to_q8_0}[kind]
    columns = weight.shape[1]
    rows = max(1, _AT_ONCE // columns)
    for target, source in zip(blocks.split(rows), weight.split(rows), strict=True):
        filled = F.pad(source.float(), (0, -columns % 32))
        target.copy_(encode(filled.view(-1, 32)).view(len(source), -1))


def _to_q8_0(groups: Tensor) -> Tensor:
    """Groups `[n, 32]` -> blocks uint8 `[n, 34]`, to the nearest."""
    scale = (groups.abs().amax(1) / 127).half()
    values = (groups * _inverse(scale)[:, None]).round().clamp_(-127, 127)
    return torch.cat((_bytes(scale), values.to(torch.int8).view(torch.uint8)), dim=1)


_RANGES = [13 + 0.5 * i for i in range(9)]
"""Steps that a group's range is first divided into; 15 is its own."""


def _to_q4_1(groups: Tensor) -> Tensor:
    """Groups `[n, 32]` -> blocks uint8 `[n, 20]`."""
    low, high, total = groups.amin(1), groups.amax(1), groups.sum(1)
    scale, minimum = _rounded((high - low) / 15), _rounded(low)
    values = _four_bits(groups, scale, minimum)
    least = _squared_error(groups, values, scale, minimum)
    for steps in _RANGES:
        d, m = (high - low) / steps, low
        for _ in range(2):
            q = _four_bits(groups, d, m)
            n, squares, products = q.sum(1), q.square().sum(1), (q * groups).sum(1)
            spread = 32 * squares - n * n
            d = torch.where(spread > 0, (32 * products - total * n) / spread, 0.0)
            m = (total - d * n) / 32
        d, m = _rounded(d), _rounded(m)
        q = _four_bits(groups, d, m)
        error = _squared_error(groups, q, d, m)
        better = error < least
        least = torch.where(better, error, least)
        scale, minimum = torch.where(better, d, scale), torch.where(better, m, minimum)
        values = torch.where(better[:, None], q, values)
    whole = values.to(torch.uint8)
    packed = whole[:, :16] | whole[:, 16:] << 4
    return torch.cat((_bytes(scale.half()), _bytes(minimum.half()), packed), dim=1)


def _rounded(numbers: Tensor) -> Tensor:
    """To fp16 and back."""
    return numbers.half().float()


def _four_bits(groups: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    """Whole numbers 0..15 nearest to groups `[n, 32]`, fp32."""
    steps = (groups - minimum[:, None]) * _inverse(scale)[:, None]
    return steps.round_().clamp_(0, 15)


def _squared_error(groups: Tensor, values: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    return (values * scale[:, None] + minimum[:, None] - groups).square().sum(1)


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale in fp32; 0 where it is 0."""
    wide = scale.float()
    return torch.where(wide != 0, 1 / wide, 0.0)


def _bytes(halves: Tensor) -> Tensor:
    """fp16 `[n]` -> uint8 `[n, 2]`."""
    return halves.view(torch.uint8).view(-1, 2)
