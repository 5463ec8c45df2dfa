"""Keep the memory that a step frees for the next step.

A step allocates and frees gigabytes in blocks of many megabytes. glibc gives each of them back to
the kernel at once and pays for it in page faults, a fifth of a step on CPU (docs/lab.md).
"""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory. Without glibc this does nothing."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
        mallopt(_M_TOP_PAD, 256 * 2**20)
