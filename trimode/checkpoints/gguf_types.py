"""The types of GGUF tensors: their blocks, and how they become floats."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trimode.errors import CheckpointError
from trimode.model.quantised import BLOCK_KINDS, QuantisedMatrix


class TensorType(NamedTuple):
    """One of ggml's types."""

    number: int
    """In the file."""
    name: str
    weights: int
    """Of a block."""
    size: int
    """Bytes of a block."""


_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NUMBERS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "BF16": 30,
}  # fmt: skip
"""The types of ordinary files. The package `gguf`, which is slow to import, knows the others."""


def _own_types() -> dict[int, TensorType]:
    """The types that are read without the package, by number."""
    blocks = {name: (1, dtype.itemsize) for name, dtype in _FLOATS.items()}
    blocks |= {name: (kind.weights, kind.size) for name, kind in BLOCK_KINDS.items()}
    return {number: TensorType(number, name, *blocks[name]) for name, number in _NUMBERS.items()}


_OWN = _own_types()


def tensor_type(number: int, tensor: str) -> TensorType:
    """The type that a file gives by number.

    Args:
        number: as the file has it.
        tensor: the tensor's name, for the error.

    Raises:
        CheckpointError: nobody here turns the type into floats.
    """
    found = _OWN.get(number) or _rare_types().get(number)
    if found is None:
        readable = ", ".join(kind.name for kind in _rare_types().values())
        raise CheckpointError(tensor, f"type {_name(number)}", f"supported: {readable}")
    return found


def to_floats(kind: TensorType, blocks: Tensor) -> Tensor:
    """Blocks as floats: F16 and BF16 as they are, the others in fp32 as llama.cpp has them.

    Args:
        kind: their type.
        blocks: uint8 `[rows, bytes of a row]`.

    Returns:
        `[rows, weights of a row]`.
    """
    if kind.name in _FLOATS:
        return blocks.view(_FLOATS[kind.name])
    if kind.name in BLOCK_KINDS:
        return QuantisedMatrix(kind.name, blocks).floats()
    import gguf

    values = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType(kind.number))
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


@cache
def _rare_types() -> dict[int, TensorType]:
    """All types that the package turns into floats, by number: it is asked to, for a block each."""
    import gguf

    def readable(kind: gguf.GGMLQuantizationType) -> bool:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
        except NotImplementedError:
            return False
        return True

    sizes = gguf.GGML_QUANT_SIZES.items()
    return {
        int(kind): TensorType(int(kind), kind.name, weights, size)
        for kind, (weights, size) in sizes
        if readable(kind)
    }


def _name(number: int) -> str:
    """What ggml calls a type."""
    import gguf

    try:
        return gguf.GGMLQuantizationType(number).name
    except ValueError:
        return str(number)
