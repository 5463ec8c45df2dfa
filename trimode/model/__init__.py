"""The transformer: attention patterns, RoPE, KV cache, adapters. It knows visibility, not modes."""

from trimode.model.adapter import (
    AdapterRows,
    AdapterScope,
    AdapterWeights,
    LowRankDelta,
    Projection,
    ReadTensor,
    StoredScope,
    merged,
)
from trimode.model.attention import CachedAttention, Segment
from trimode.model.build import DTYPES, build_runner, choose_format, cpu_multiplies_bf16, describe
from trimode.model.kv_cache import KVCache
from trimode.model.parameters import LAYER_NORMS, expected_tensors
from trimode.model.quantised import QuantisedMatrix, as_floats
from trimode.model.runners import Runner
from trimode.model.transformer import Block, GivenRows, Transformer

__all__ = [
    "DTYPES",
    "LAYER_NORMS",
    "AdapterRows",
    "AdapterScope",
    "AdapterWeights",
    "Block",
    "CachedAttention",
    "GivenRows",
    "KVCache",
    "LowRankDelta",
    "Projection",
    "QuantisedMatrix",
    "ReadTensor",
    "Runner",
    "Segment",
    "StoredScope",
    "Transformer",
    "as_floats",
    "build_runner",
    "choose_format",
    "cpu_multiplies_bf16",
    "describe",
    "expected_tensors",
    "merged",
]
