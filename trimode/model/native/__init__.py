"""The int8 and int4 passes in C++ (`pass.cpp`), called through ctypes; optional.

It is built when the package is installed if there is a C++ compiler (`hatch_build.py`), and used on
x86 CPUs with AVX2. On a CPU with AMX it takes packed weights. Without it the PyTorch operators
compute the same pass: linears are the same bit for bit, norms and attention up to rounding.
`TRIMODE_NATIVE=0` in the environment switches it off.
"""

import ctypes
import hashlib
import os
from ctypes import POINTER, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from trimode.model.native import structs

LIBRARY = Path(__file__).with_name("pass.so")
ABI = 6


@cache
def library() -> ctypes.CDLL | None:
    """The built library; None if it is not built, is of another version, or cannot be used here."""
    if os.environ.get("TRIMODE_NATIVE") == "0" or not LIBRARY.is_file():
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.trimode_abi.restype = c_int64
        if found.trimode_abi() != ABI or structs.mismatch(found) is not None:
            return None
    except (OSError, AttributeError):
        return None
    found.trimode_pass.restype = None
    found.trimode_pass.argtypes = [POINTER(structs.Model), POINTER(structs.Pass)]
    found.trimode_linear.restype = None
    found.trimode_linear.argtypes = [
        POINTER(structs.Linear),
        c_void_p,
        c_int64,
        c_void_p,
        c_int64,
    ]
    found.trimode_wants_packed.restype = c_int64
    found.trimode_lanes.restype = c_int64
    found.trimode_strip_bytes.argtypes = [c_int64, c_int64]
    found.trimode_strip_bytes.restype = c_int64
    found.trimode_pack.argtypes = [c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64]
    found.trimode_pack.restype = None
    found.trimode_unpack.argtypes = [
        c_int64,
        c_void_p,
        c_int64,
        c_void_p,
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
    ]
    found.trimode_unpack.restype = None
    found.trimode_quantise.argtypes = [
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
        c_int64,
        c_int64,
        c_void_p,
        c_int64,
    ]
    found.trimode_quantise.restype = None
    found.trimode_rows.argtypes = [POINTER(structs.Linear), c_void_p, c_int64, c_void_p]
    found.trimode_rows.restype = None
    return found


@cache
def build() -> str:
    """A name for the library as it was built; empty if it is not used."""
    return "" if library() is None else hashlib.sha256(LIBRARY.read_bytes()).hexdigest()[:16]


def wants_packed() -> bool:
    """Whether the library's kernels for this CPU take packed weights."""
    found = library()
    return found is not None and bool(found.trimode_wants_packed())
