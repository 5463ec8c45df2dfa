"""Files whose pages are in memory only while somebody uses them."""

import mmap
import weakref
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 8
"""Bytes; the alignment that every dtype is content with."""
_GIVES_BACK = hasattr(mmap, "MADV_DONTNEED")


class MappedFile:
    """A file mapped into memory: private, so that writes to its tensors stay in this process.

    The system counts every page that was read as memory of the process until the file is unmapped.
    So a tensor's pages are given back as soon as nothing refers to the tensor any more. If they are
    read again, they come from the system's cache of the disk.

    Args:
        path: a file that is not empty.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is empty.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = np.frombuffer(self.map, dtype=np.uint8)
        self._used: list[tuple[int, int]] = []
        """Start and end of every tensor that is alive."""

    def __len__(self) -> int:
        """Bytes of the file."""
        return len(self.map)

    def tensor(self, start: int, size: int) -> Tensor:
        """Some bytes of the file, uint8 `[size]`: a view, or a copy where the start is not aligned.

        Args:
            start: the first byte.
            size: bytes.
        """
        view = self._bytes[start : start + size]
        place = (start, start + size)
        self._used.append(place)
        weakref.finalize(view, self._unused, place).atexit = False
        tensor = torch.from_numpy(view)  # holds `view` until no other tensor shares its bytes
        return tensor if start % _ALIGNED == 0 else tensor.clone()

    def give_back(self, start: int, end: int) -> None:
        """Give the pages of a range back, unless a tensor uses some of it.

        Pages that are partly outside stay: a neighbour may have written to them.
        """
        used = tuple(self._used)  # a tensor of another thread may end while this one looks
        if not _GIVES_BACK or any(a < end and start < b for a, b in used):
            return
        start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            self.map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _unused(self, place: tuple[int, int]) -> None:
        self._used.remove(place)
        self.give_back(*place)
