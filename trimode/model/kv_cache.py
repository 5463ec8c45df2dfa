"""Keys and values of one sequence.

A pass writes its rows after the cached ones. They are pending until some of them are kept. So a
rejected draft costs nothing to drop, and the rows of an accepted path are moved, not computed
again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimode.config import ModelConfig


class KVCache:
    """Fixed-capacity cache, `[layers, kv_heads, capacity, head_dim]` for keys and for values."""

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        shape = (config.num_layers, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self.length = 0
        """Tokens in the cache."""
        self.pending = 0
        """Rows of the last pass, written after `length` tokens and not yet kept."""

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """Bytes that one token takes over all layers."""
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize

    def reserve(self, rows: int) -> int:
        """Make a pass's rows the pending ones; returns where they end."""
        end = self.length + rows
        assert end <= self.capacity, f"KV cache holds {self.capacity} tokens, {end} needed"
        self.pending = rows
        return end

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store a pass's rows `[n, kv_heads, head_dim]` after the cached ones.

        Returns:
            Views of keys and values `[kv_heads, length + n, head_dim]`.
        """
        end = self.reserve(len(keys))
        self.keys[layer, :, self.length : end] = keys.transpose(0, 1)
        self.values[layer, :, self.length : end] = values.transpose(0, 1)
        return self.keys[layer, :, :end], self.values[layer, :, :end]

    def keep(self, rows: Sequence[int]) -> None:
        """Add pending rows to the cached ones, in the given order, and drop the others."""
        assert all(0 <= row < self.pending for row in rows), "only pending rows can be kept"
        if list(rows) != list(range(len(rows))):
            source = torch.as_tensor(rows, device=self.keys.device) + self.length
            target = slice(self.length, self.length + len(rows))
            self.keys[:, :, target] = self.keys[:, :, source]
            self.values[:, :, target] = self.values[:, :, source]
        self.length += len(rows)
        self.pending = 0

    def copy_prefix(self, source: "KVCache", length: int) -> None:
        """Hold the first `length` tokens of another cache, and nothing else."""
        assert length <= min(source.length, self.capacity)
        if source is not self:
            self.keys[:, :, :length] = source.keys[:, :, :length]
            self.values[:, :, :length] = source.values[:, :, :length]
        self.length, self.pending = length, 0

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert 0 <= length <= self.length
        self.length, self.pending = length, 0
