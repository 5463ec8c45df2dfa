"""The structures and constants that Python and C++ share; `types.h` has the other half.

`mismatch` compares the two. A library that differs is not used.
"""

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int64, c_void_p

MOST_PARTS = 3
"""Linears of a projection that have an adapter of their own: queries, keys and values."""
HEAD_DIM_MULTIPLE = 8
FEATURE_MULTIPLE = 16
"""A linear's inputs are a multiple of this, an adapter's ranks included."""
WEIGHT_LEVELS = 127
"""Largest int8 weight."""
ACTIVATION_LEVELS = 2047
"""Largest 12-bit activation."""
TILE_OUTPUTS, TILE_INPUTS = 16, 64
"""Size of a tile of packed weights."""


class Strip(Structure):
    """A few outputs of a linear whose weights are in groups."""

    _fields_ = [
        ("bytes", c_void_p),
        ("lower", c_void_p),
        ("kind", c_int64),
        ("first", c_int64),
        ("width", c_int64),
    ]


class Linear(Structure):
    """A linear; one of `weight`, `packed` and `strip` is set."""

    _fields_ = [
        ("out", c_int64),
        ("in_", c_int64),
        ("weight", c_void_p),
        ("packed", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("strip", POINTER(Strip)),
        ("strips", c_int64),
    ]


class DeltaPart(Structure):
    """A fused linear's share of an adapter."""

    _fields_ = [("first_out", c_int64), ("first_rank", c_int64), ("up", Linear)]


class Projection(Structure):
    """Fused linears and their adapter."""

    _fields_ = [
        ("base", Linear),
        ("down", Linear),
        ("parts", c_int64),
        ("part", DeltaPart * MOST_PARTS),
    ]


class Layer(Structure):
    """A transformer layer."""

    _fields_ = [
        ("input_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("qkv", Projection),
        ("o", Projection),
        ("gate_up", Projection),
        ("down", Projection),
    ]


class Model(Structure):
    """The layers and the last norm."""

    _fields_ = [
        ("layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("intermediate", c_int64),
        ("eps", c_float),
        ("layer", POINTER(Layer)),
        ("norm", c_void_p),
        ("embedding", POINTER(Linear)),
        ("mask_embedding", c_void_p),
        ("mask_token", c_int64),
    ]


class Segment(Structure):
    """Rows of one sequence, with its KV cache."""

    _fields_ = [
        ("start", c_int64),
        ("stop", c_int64),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("capacity", c_int64),
        ("length", c_int64),
        ("causal", c_int64),
        ("visible", c_void_p),
    ]


class Pass(Structure):
    """One forward pass."""

    _fields_ = [
        ("rows", c_int64),
        ("x", c_void_p),
        ("tokens", c_void_p),
        ("positions", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("places", c_int64),
        ("query_scale", c_void_p),
        ("adapted", c_int64),
        ("adapter_rows", c_void_p),
        ("segments", c_int64),
        ("segment", POINTER(Segment)),
        ("threads", c_int64),
        ("products", c_double),
    ]


class DraftHead(Structure):
    """A draft head."""

    _fields_ = [
        ("dim", c_int64),
        ("inner", c_int64),
        ("state_scale", c_float),
        ("embedding_scale", c_float),
        ("enter", Linear),
        ("leave", Linear),
        ("words", Linear),
    ]


class MarkovHead(Structure):
    """A Markov head."""

    _fields_ = [
        ("dim", c_int64),
        ("rank", c_int64),
        ("inner", c_int64),
        ("state", c_void_p),
        ("state_bias", c_void_p),
        ("state_factor", c_float),
        ("before", c_void_p),
        ("words", c_void_p),
        ("enter", c_void_p),
        ("leave", c_void_p),
    ]


STRUCTURES = (
    *(Strip, Linear, DeltaPart, Projection, Layer, Model, Segment, Pass),
    *(DraftHead, MarkovHead),
)
CONSTANTS = {
    "most_parts": MOST_PARTS,
    "head_dim_multiple": HEAD_DIM_MULTIPLE,
    "feature_multiple": FEATURE_MULTIPLE,
    "weight_levels": WEIGHT_LEVELS,
    "activation_levels": ACTIVATION_LEVELS,
    "tile_outputs": TILE_OUTPUTS,
    "tile_inputs": TILE_INPUTS,
}


def shared_facts() -> dict[str, int]:
    """Sizes of the structures in bytes and values of the constants, by name."""
    sizes = {f"sizeof {kind.__name__}": ctypes.sizeof(kind) for kind in STRUCTURES}
    return sizes | CONSTANTS


def mismatch(library: ctypes.CDLL) -> str | None:
    """The first fact in which the built library differs; None if it agrees in all."""
    library.trimode_fact.argtypes = [ctypes.c_char_p]
    library.trimode_fact.restype = c_int64
    for name, value in shared_facts().items():
        if library.trimode_fact(name.encode()) != value:
            return name
    return None
