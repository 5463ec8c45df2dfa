"""The transformer: attention patterns, RoPE, KV cache, adapters. It knows visibility, not modes."""

from trimode.model.adapter import AdapterScope, AdapterWeights, LowRankDelta, Projection
from trimode.model.attention import CachedAttention, Segment
from trimode.model.kv_cache import KVCache
from trimode.model.linear import DTYPES, describe_kernel
from trimode.model.parameters import expected_tensors
from trimode.model.transformer import Block, ReadTensor, Transformer

__all__ = [
    "DTYPES",
    "AdapterScope",
    "AdapterWeights",
    "Block",
    "CachedAttention",
    "KVCache",
    "LowRankDelta",
    "Projection",
    "ReadTensor",
    "Segment",
    "Transformer",
    "describe_kernel",
    "expected_tensors",
]
