"""KV caches under one bound on bytes."""

import torch

from trimode.config import ModelConfig
from trimode.model import KVCache

_MAX_WASTE = 2
"""A freed cache goes to a request that needs more than 1 / this of it."""
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
        room = self.max_tokens - self.tokens_lent
        sizes = range(capacity, min(_MAX_WASTE * capacity, room + 1))
        fitting = [c for c in self._free if c.capacity in sizes]
        if fitting:
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
