"""The int8 and int4 passes in C++ (`pass.cpp`), called through ctypes; optional.

It is built when the package is installed if there is a C++ compiler (`hatch_build.py`), and used on
x86 CPUs with AVX2. On a CPU with AMX it takes packed weights. Without it the PyTorch operators
compute the same pass: linears are the same bit for bit, norms and attention up to rounding.
`TRIMODE_NATIVE=0` in the environment switches it off.
"""

import ctypes
import hashlib
import os
from ctypes import POINTER, c_char_p, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trimode.model.native import structs

LIBRARY = Path(__file__).with_name("pass.so")
ABI = 11


_VOID = None
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "trimode_pass": (c_int64, [POINTER(structs.Model), POINTER(structs.Pass)]),
    "trimode_linear": (_VOID, [POINTER(structs.Linear), c_void_p, c_int64, c_void_p, c_int64]),
    "trimode_screened": (c_int64, [POINTER(structs.Linear)]),
    "trimode_highest": (
        _VOID,
        [POINTER(structs.Linear), c_void_p, c_int64, c_int64, c_void_p, c_int64],
    ),
    "trimode_draft_step": (
        _VOID,
        [POINTER(structs.DraftHead), c_void_p, c_void_p, c_void_p, c_void_p, c_int64],
    ),
    "trimode_draft_tree": (
        c_int64,
        [
            *(POINTER(structs.DraftHead), c_void_p, c_void_p, c_void_p, c_int64, c_int64),
            *(c_void_p, c_float, c_void_p, c_void_p, c_void_p, c_int64),
        ],
    ),
    "trimode_markov_tree": (
        c_int64,
        [
            *(POINTER(structs.MarkovHead), c_void_p, c_int64, c_int64, c_int64),
            *(c_void_p, c_float, c_int64, c_int64, c_int64, c_int64, c_int64),
            *(c_void_p, c_void_p, c_void_p, c_int64),
        ],
    ),
    "trimode_wants_packed": (c_int64, []),
    "trimode_kernels": (c_char_p, [c_int64]),
    "trimode_use_kernels": (_VOID, [c_int64]),
    "trimode_lanes": (c_int64, []),
    "trimode_strip_bytes": (c_int64, [c_int64, c_int64]),
    "trimode_lower_bytes": (c_int64, [c_int64, c_int64]),
    "trimode_pack": (
        _VOID,
        [c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64],
    ),
    "trimode_quantise": (
        _VOID,
        [c_int64, c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64],
    ),
    "trimode_unpack": (
        _VOID,
        [c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64],
    ),
    "trimode_rows": (_VOID, [POINTER(structs.Linear), c_void_p, c_int64, c_void_p]),
}
"""Result and arguments of each function."""


@cache
def library() -> ctypes.CDLL | None:
    """The built library; None if it is not built, is of another version, or cannot be used here."""
    if os.environ.get("TRIMODE_NATIVE") == "0" or not LIBRARY.is_file():
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    return opened(LIBRARY)


def opened(path: Path) -> ctypes.CDLL | None:
    """A library with the signatures of its functions; None if it is of another version."""
    try:
        found = ctypes.CDLL(str(path))
        found.trimode_abi.restype = c_int64
        if found.trimode_abi() != ABI or structs.mismatch(found) is not None:
            return None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return found


@cache
def build() -> str:
    """A name for the library as it was built; empty if it is not used."""
    return "" if library() is None else hashlib.sha256(LIBRARY.read_bytes()).hexdigest()[:16]


def group_kernels() -> str:
    """The library's kernels for weights in groups on this CPU, in words."""
    found = library()
    return "" if found is None else found.trimode_kernels(-1).decode()


def wants_packed() -> bool:
    """Whether the library's kernels for this CPU take packed weights."""
    found = library()
    return found is not None and bool(found.trimode_wants_packed())
