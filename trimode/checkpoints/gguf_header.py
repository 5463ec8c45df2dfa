"""A quick check of a GGUF file's header, before anything relies on it.

`gguf.GGUFReader` trusts every count. Past the end of a damaged file it goes on, and fills the
memory with as many empty values as the count says.
"""

import mmap
import struct
from pathlib import Path

from trimode.errors import CheckpointError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each scalar value type. Source: ggml's gguf.md."""
_MAX_DIMENSIONS = 4


def check_header(path: Path) -> None:
    """Check that every string, array and tensor description lies inside the file.

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
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Walk(data).header()
    except (OSError, ValueError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        found = f"truncated or damaged ({error})"
        raise CheckpointError(str(path), found, "fetch it again") from None


class _Walk:
    """A position in the file that only moves forward, and never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 8

    def header(self) -> None:
        tensors, pairs = self._number("<Q"), self._number("<Q")
        for _ in range(pairs):
            self._text()
            self._value(self._number("<I"))
        for _ in range(tensors):
            self._text()
            dimensions = self._number("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            self._skip(8 * dimensions + 4 + 8)  # sizes, type, offset

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            item, count = self._number("<I"), self._number("<Q")
            if item == _STRING:
                for _ in range(count):
                    self._text()
            else:
                self._skip(self._size(item) * count)
        else:
            self._skip(self._size(kind))

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError(f"a value of unknown type {kind}")
        return _SIZES[kind]

    def _number(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _text(self) -> None:
        self._skip(self._number("<Q"))

    def _skip(self, size: int) -> None:
        self._at += size
        if self._at > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)}, but its header goes on")
