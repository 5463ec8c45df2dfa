"""KV caches within a limit of bytes; freed ones are remembered for prompts that begin alike."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from trimode.config import ModelConfig
from trimode.model import KVCache

_MAX_WASTE = 2
"""A freed cache is reused by a request that needs more than 1 / this of its capacity."""
_ROUND = 64
"""Capacities are rounded up to this many tokens so that freed caches fit later requests."""
_LEAST_SHARED = 16
"""Fewest tokens of a shared prefix that are worth copying."""
_REMEMBERED = 0.25
"""Share of the pool that freed caches may fill before the oldest is overwritten."""


class KVPool:
    """Lends caches to sequences.

    A freed cache keeps its keys and values until its memory is needed. A later request whose
    prompt begins with the same tokens starts with a copy of them. The copy is exact: these are
    causal rows without the adapter, which depend on the tokens alone. Where a picture stands, a
    number that is made from it takes the token's place.
    """

    def __init__(
        self, config: ModelConfig, max_bytes: int, *, dtype: torch.dtype, device: str
    ) -> None:
        self._config, self._dtype, self._device = config, dtype, device
        self._bytes_per_token = KVCache.bytes_per_token(config, dtype)
        self.max_tokens = max_bytes // self._bytes_per_token
        self._free: list[tuple[np.ndarray, KVCache]] = []
        """Freed caches and the tokens they hold, oldest first."""
        self.tokens_held = 0
        """Capacity of all caches, lent and free."""
        self.tokens_lent = 0

    def acquire(
        self,
        tokens: int,
        prefix: Sequence[int] = (),
        live: Iterable[tuple[Sequence[int], KVCache]] = (),
    ) -> KVCache | None:
        """A cache for at least `tokens` tokens, or None until another is released.

        Args:
            tokens: capacity wanted.
            prefix: tokens whose keys and values will be needed. The cache begins with as many of
                them as another cache holds.
            live: lent caches with the tokens they hold.
        """
        capacity = self._capacity(tokens)
        if capacity < tokens or self.tokens_lent + capacity > self.max_tokens:
            return None
        source, shared = self._longest_shared(prefix, live)
        cache = self._take(capacity)
        if source is None:
            cache.crop(0)
        else:
            cache.copy_prefix(source, shared)
        return cache

    def grow(self, cache: KVCache, tokens: int) -> KVCache | None:
        """A lent cache's successor for at least `tokens` tokens, or None if there is no room."""
        capacity = self._capacity(tokens)
        if capacity < tokens or self.tokens_lent + capacity > self.max_tokens:
            return None
        larger = self._take(capacity)
        larger.copy_prefix(cache, cache.length)
        self.release(cache)
        return larger

    def release(self, cache: KVCache, tokens: Sequence[int] = ()) -> None:
        """Take a cache back; `tokens` are those it holds, () if they need no remembering."""
        cache.crop(min(cache.length, len(tokens)))
        self.tokens_lent -= cache.capacity
        self._free.append((np.asarray(tokens[: cache.length], dtype=np.int64), cache))

    def _capacity(self, tokens: int) -> int:
        return min(-(-tokens // _ROUND) * _ROUND, self.max_tokens)

    def _take(self, capacity: int) -> KVCache:
        """A cache within the limit; a freed one is reused once enough of them are remembered."""
        sizes = range(capacity, min(_MAX_WASTE * capacity, self.max_tokens - self.tokens_lent + 1))
        fitting = [i for i, (_, cache) in enumerate(self._free) if cache.capacity in sizes]
        remembered = self.tokens_held - self.tokens_lent
        full = self.tokens_held + capacity > self.max_tokens
        if fitting and (full or remembered > _REMEMBERED * self.max_tokens):
            worthless = [i for i in fitting if not len(self._free[i][0])]
            _, cache = self._free.pop((worthless or fitting)[0])
        else:
            while self._free and self.tokens_held + capacity > self.max_tokens:
                self.tokens_held -= self._free.pop(0)[1].capacity
            cache = KVCache(self._config, capacity, dtype=self._dtype, device=self._device)
            self.tokens_held += capacity
        self.tokens_lent += cache.capacity
        return cache

    def _longest_shared(
        self, prefix: Sequence[int], live: Iterable[tuple[Sequence[int], KVCache]]
    ) -> tuple[KVCache | None, int]:
        """The cache that holds most of the prefix, and how many tokens of it."""
        wanted = np.asarray(prefix, dtype=np.int64)
        best, most = None, 0
        if len(wanted) >= _LEAST_SHARED:
            for tokens, cache in (*self._free, *live):
                held = min(cache.length, len(wanted))
                if held <= most:
                    continue
                same = np.asarray(tokens[:held], dtype=np.int64) == wanted[:held]
                shared = held if same.all() else int(same.argmin())
                if shared > most:
                    best, most = cache, shared
        if best is None or most < _LEAST_SHARED:
            return None, 0
        return best, most
