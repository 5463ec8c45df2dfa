"""KV caches under one bound on bytes."""

import torch

from trimode.config import ModelConfig
from trimode.model import KVCache

_ROUND = 64
"""Capacities are rounded up to this many tokens so that freed caches fit later requests."""


class KVPool:
    """Lends caches to sequences; freed ones are reused before new memory is taken."""

    def __init__(
        self, config: ModelConfig, max_bytes: int, *, dtype: torch.dtype, device: str
    ) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._bytes_per_token = KVCache.bytes_per_token(config, dtype)
        self.max_tokens = max_bytes // self._bytes_per_token
        self._free: list[KVCache] = []
        self.tokens_held = 0
        """Capacity of all caches, lent and free."""
        self.tokens_lent = 0

    def acquire(self, tokens: int) -> KVCache | None:
        """A cache for at least `tokens` tokens, or None until another is released."""
        capacity = min(-(-tokens // _ROUND) * _ROUND, self.max_tokens)
        if capacity < tokens or self.tokens_lent + capacity > self.max_tokens:
            return None
        fitting = [c for c in self._free if c.capacity >= capacity]
        if fitting and self.tokens_lent + min(c.capacity for c in fitting) <= self.max_tokens:
            cache = min(fitting, key=lambda c: c.capacity)
            self._free.remove(cache)
        else:
            while self._free and self.tokens_held + capacity > self.max_tokens:
                self.tokens_held -= self._free.pop().capacity
            cache = KVCache(self._config, capacity, dtype=self._dtype, device=self._device)
            self.tokens_held += capacity
        self.tokens_lent += cache.capacity
        return cache

    def release(self, cache: KVCache) -> None:
        """Take a cache back."""
        cache.crop(0)
        self.tokens_lent -= cache.capacity
        self._free.append(cache)
