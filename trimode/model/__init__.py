"""The transformer: attention patterns, RoPE, KV cache, adapters. It knows visibility, not modes."""

from trimode.model.adapter import AdapterScope, AdapterWeights
from trimode.model.attention import CachedAttention, Segment
from trimode.model.kv_cache import KVCache
from trimode.model.linear import DTYPES, describe_kernel
from trimode.model.parameters import expected_tensors
from trimode.model.transformer import Transformer

__all__ = [
    "DTYPES",
    "AdapterScope",
    "AdapterWeights",
    "CachedAttention",
    "KVCache",
    "Segment",
    "Transformer",
    "describe_kernel",
    "expected_tensors",
]
