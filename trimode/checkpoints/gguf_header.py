"""The header of a GGUF file: its key-value pairs and the descriptions of its tensors.

Nothing in the file is trusted: every count is followed to its end before anything relies on it.

Source of the layout: ggml's `gguf.md`.
"""

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trimode.checkpoints.gguf_types import TensorType, tensor_type
from trimode.checkpoints.mapped_file import MappedFile
from trimode.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", _BOOL: "u1", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
"""NumPy's names of the scalar value types."""
_MAX_DIMENSIONS = 4
_USUAL_ALIGNMENT = 32
_LENGTH = struct.Struct("<Q")
_NUMBER = struct.Struct("<I")
_ARRAY_HEAD = struct.Struct("<IQ")
"""Type and count of the items."""


class StoredTensor(NamedTuple):
    """A tensor of a file."""

    file: MappedFile
    name: str
    shape: tuple[int, ...]
    """The rows first, as in PyTorch."""
    kind: TensorType
    start: int
    """Byte of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself. Values are decoded on demand: a vocabulary takes a while."""

    path: Path
    file: MappedFile
    _values: dict[str, tuple[int, int]]
    """Type and place of each value."""
    _tensors: dict[str, tuple[tuple[int, ...], int, int]]
    """Shape, number of the type and offset of each tensor."""
    _end: int
    """Where the descriptions of the tensors end."""

    def __contains__(self, key: object) -> bool:
        """Whether the file has the key."""
        return key in self._values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key: a number, a text, true or false, or a list of one of these.

        Raises:
            CheckpointError: a text is not UTF-8, or a truth value is neither 0 nor 1.
        """
        if key not in self._values:
            return default
        kind, at = self._values[key]
        try:
            return _value(self.file, kind, at)
        except ValueError as error:
            found = f"not readable ({error})"
            raise CheckpointError(f"{self.path}: {key}", found, "fetch it again") from None

    def give_back(self) -> None:
        """Give the memory of the header back: a vocabulary takes megabytes, and is read once."""
        self.file.give_back(0, self._end)

    def tensors(self) -> list[StoredTensor]:
        """The tensors, in the order of the file's header.

        Raises:
            CheckpointError: one has a type that is not supported, is not made of whole blocks, runs
                past the end of the file, or overlaps another one.
        """
        alignment = self._alignment()
        start = -(-self._end // alignment) * alignment
        found = []
        for name, (shape, number, offset) in self._tensors.items():
            kind = tensor_type(number, name)
            if (shape[-1] if shape else 1) % kind.weights:
                allowed = f"rows of whole blocks of {kind.weights}"
                raise CheckpointError(f"{self.path}: {name}", f"rows of {shape[-1]}", allowed)
            size = math.prod(shape) // kind.weights * kind.size
            end = start + offset + size
            if end > len(self.file):
                raise _damaged(
                    self.path, f"{name} ends at byte {end}, the file at byte {len(self.file)}"
                )
            if offset % alignment:
                raise _damaged(self.path, f"{name} begins at {offset}, no multiple of {alignment}")
            found.append(StoredTensor(self.file, name, shape, kind, start + offset, size))
        in_order = sorted((tensor for tensor in found if tensor.size), key=lambda t: t.start)
        for one, following in pairwise(in_order):
            if one.start + one.size > following.start:
                raise _damaged(self.path, f"{one.name} and {following.name} overlap")
        return found

    def _alignment(self) -> int:
        key = "general.alignment"
        value = self.get(key, _USUAL_ALIGNMENT)
        if type(value) is not int or value < 1 or value & (value - 1):
            raise CheckpointError(f"{self.path}: {key}", repr(value), "must be a power of two")
        return value


def read_header(path: Path) -> GgufHeader:
    """Map a file and walk through its header; no value is decoded.

    Raises:
        CheckpointError: the file is not a GGUF file, or is truncated or damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start[:4] != _MAGIC:
            raise CheckpointError(str(path), "not a GGUF file", "its first bytes must be GGUF")
        version = int.from_bytes(start[4:], "little")
        if version not in _VERSIONS:  # the other byte order shows up here as a huge number
            allowed = "supported: 2 and 3, little-endian"
            raise CheckpointError(f"{path}: version", str(version), allowed)
        return _Walk(path, MappedFile(path)).header()
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(str(path), f"truncated or damaged ({how})", "fetch it again")


class _Walk:
    """A position in the file that only moves forward, and never past the end."""

    def __init__(self, path: Path, file: MappedFile) -> None:
        self._path, self._file = path, file
        self._at = 8

    def header(self) -> GgufHeader:
        count, pairs = self._length(), self._length()
        values: dict[str, tuple[int, int]] = {}
        for _ in range(pairs):
            key, kind = self._text(), self._number()
            if key in values:
                raise CheckpointError(f"{self._path}: {key}", "is there twice", "each key once")
            values[key] = (kind, self._at)
            self._pass_value(kind)
        tensors: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name, dimensions = self._text(), self._number()
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            if name in tensors:
                raise CheckpointError(f"{self._path}: {name}", "is there twice", "each tensor once")
            shape = tuple(self._length() for _ in range(dimensions))[::-1]
            tensors[name] = (shape, self._number(), self._length())
        return GgufHeader(self._path, self._file, values, tensors, self._at)

    def _pass_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip(self._length())
        elif kind == _ARRAY:
            item, count = self._number(), self._length()
            if item == _STRING:
                self._pass_texts(count)
            else:
                self._skip(_scalar(item).itemsize * count)
        else:
            self._skip(_scalar(kind).itemsize)

    def _pass_texts(self, count: int) -> None:
        """Go past an array of strings, of which there may be hundreds of thousands."""
        data, at, length = self._file.map, self._at, _LENGTH.unpack_from
        try:
            for _ in range(count):
                at += _LENGTH.size + length(data, at)[0]
        except (struct.error, OverflowError):
            raise ValueError(self._ends()) from None
        self._skip(at - self._at)

    def _number(self) -> int:
        return self._unpack(_NUMBER)

    def _length(self) -> int:
        return self._unpack(_LENGTH)

    def _unpack(self, layout: struct.Struct) -> int:
        at = self._at
        self._skip(layout.size)
        (value,) = layout.unpack_from(self._file.map, at)
        return value

    def _text(self) -> str:
        size = self._length()
        self._skip(size)
        return self._file.map[self._at - size : self._at].decode()

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._file):
            raise ValueError(self._ends())

    def _ends(self) -> str:
        return f"it ends at byte {len(self._file)}, but its header goes on"


def _scalar(kind: int) -> np.dtype[Any]:
    if kind not in _SCALARS:
        raise ValueError(f"a value of unknown type {kind}")
    return np.dtype(_SCALARS[kind])


def _value(file: MappedFile, kind: int, at: int) -> Any:
    """The value of a type at a place that `_Walk` has been to."""
    if kind != _ARRAY:
        return _items(file, kind, at, 1)[0]
    item, count = _ARRAY_HEAD.unpack_from(file.map, at)
    return _items(file, item, at + _ARRAY_HEAD.size, count)


def _items(file: MappedFile, kind: int, at: int, count: int) -> list[Any]:
    if kind == _STRING:
        return _texts(file, at, count)
    numbers = np.frombuffer(file.map, _scalar(kind), count, at)
    if kind == _BOOL:
        if numbers.max(initial=0) > 1:
            raise ValueError(f"a truth value of {numbers.max()}")
        numbers = numbers.astype(np.bool_)
    return numbers.tolist()


def _texts(file: MappedFile, at: int, count: int) -> list[str]:
    data, length, texts = file.map, _LENGTH.unpack_from, []
    for _ in range(count):
        start = at + _LENGTH.size
        at = start + length(data, at)[0]
        texts.append(data[start:at].decode())
    return texts
