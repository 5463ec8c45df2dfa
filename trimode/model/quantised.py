"""Matrices in blocks of a few bits a weight, as GGUF files store them.

A block holds groups of 16 or 32 weights. A weight is `scale * (value - offset) + minimum`: `value`
is a whole number of a few bits, `scale` and `minimum` belong to its group, `offset` to the kind of
block.

Source of the layouts: ggml's `ggml-common.h` and `gguf-py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
    decode: Callable[[Tensor], Groups]
    """Blocks uint8 `[n, size]` -> their groups, each block a row."""


@dataclass(frozen=True, slots=True, eq=False)
class QuantisedMatrix:
    """Rows of blocks. The bytes are usually a view of a mapped file."""

    kind: str
    """A key of `BLOCK_KINDS`."""
    blocks: Tensor
    """uint8 `[out, bytes of a row]`."""

    def __len__(self) -> int:
        """Rows of the matrix."""
        return len(self.blocks)

    @property
    def shape(self) -> tuple[int, int]:
        """`(out, in)`, as of the matrix of floats."""
        kind = BLOCK_KINDS[self.kind]
        return len(self.blocks), self.blocks.shape[1] // kind.size * kind.weights

    def rows(self, index: Tensor | slice) -> "QuantisedMatrix":
        """Some rows, in the given order."""
        return QuantisedMatrix(self.kind, self.blocks[index])

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

    def floats(self) -> Tensor:
        """The matrix in fp32 `[out, in]`, bit for bit as llama.cpp dequantises it."""
        kind = BLOCK_KINDS[self.kind]
        values, scale, minimum = self.groups()
        grouped = values.view(len(self), -1, kind.group).float() - kind.offset
        grouped *= scale[..., None]
        if minimum is not None:
            grouped += minimum[..., None]
        return grouped.view(self.shape)


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
    "Q4_0": BlockKind(32, 18, 4, 32, 8, _q4_0),
    "Q4_1": BlockKind(32, 20, 4, 32, 0, _q4_1),
    "Q5_0": BlockKind(32, 22, 5, 32, 16, _q5_0),
    "Q5_1": BlockKind(32, 24, 5, 32, 0, _q5_1),
    "Q8_0": BlockKind(32, 34, 8, 32, 128, _q8_0),
    "Q4_K": BlockKind(256, 144, 4, 32, 0, _q4_k),
    "Q5_K": BlockKind(256, 176, 5, 32, 0, _q5_k),
    "Q6_K": BlockKind(256, 210, 6, 16, 32, _q6_k),
}
"""By ggml's names: the types that are computed with as they are stored."""
