"""What glibc does with the memory that a step frees.

A step allocates and frees gigabytes in blocks of many megabytes. By default, glibc gives the larger
ones back to the kernel and pays for it in page faults, a fifth of a step on CPU (docs/lab.md). The
others stay with the process, in pieces that the next block does not fit into.
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -2, -3, -4
"""glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Make glibc keep all freed memory: fast, and a third more memory. Else this does nothing."""
    _set((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 * 2**20))  # -1: never


def return_freed_memory() -> None:
    """Make glibc give every block of a megabyte back at once. Else this does nothing."""
    _set((_M_MMAP_THRESHOLD, 2**20))


def _set(*options: tuple[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options:
            mallopt(option, value)
