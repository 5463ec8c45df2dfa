"""The int8 pass in C++ (`pass.cpp`), called through ctypes; optional.

It is built when the package is installed, where a C++ compiler is found (`hatch_build.py`), and
used on x86 CPUs with AVX2; where the CPU has AMX it takes packed weights. The PyTorch operators
compute the same pass without it: the linears bit for bit, norms and attention to rounding.
`TRIMODE_NATIVE=0` in the environment leaves it out.
"""

import ctypes
import hashlib
import os
from ctypes import c_int64
from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("pass.so")
ABI = 4


@cache
def library() -> ctypes.CDLL | None:
    """The built library, or None: not built, another version's, switched off, no AVX2."""
    if os.environ.get("TRIMODE_NATIVE") == "0" or not LIBRARY.is_file():
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.trimode_abi.restype = c_int64
        if found.trimode_abi() != ABI:
            return None
    except (OSError, AttributeError):
        return None
    found.trimode_pass.restype = None
    found.trimode_linear.restype = None
    found.trimode_wants_packed.restype = c_int64
    return found


@cache
def build() -> str:
    """A name for the library as it was built; empty where it is not used."""
    return "" if library() is None else hashlib.sha256(LIBRARY.read_bytes()).hexdigest()[:16]


def wants_packed() -> bool:
    """Whether the library's kernels for this CPU take packed weights."""
    found = library()
    return found is not None and bool(found.trimode_wants_packed())
