"""Attention patterns as explicit boolean matrices over a whole sequence: row i sees column j."""

from functools import lru_cache

import torch
from torch import Tensor


def causal(length: int) -> Tensor:
    """Every token sees itself and the tokens before it, `[length, length]`."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def open_block(prefix: int, block: int) -> Tensor:
    """A causal prefix, then a block that sees all of the prefix and all of itself."""
    mask = causal(prefix + block)
    mask[prefix:, prefix:] = True
    return mask


@lru_cache(maxsize=256)
def tree(drafts: int, masks: int) -> Tensor:
    """Quadratic draft tree by the definition, `[n, n]`, n = drafts * (masks + 1).

    Group j is draft token j and then `masks` masks. A draft token sees the draft tokens of its
    own and earlier groups and no mask; a mask sees the same draft tokens and its whole own group.
    """
    size = masks + 1
    n = drafts * size
    rows = []
    for query in range(n):
        query_group, query_is_mask = query // size, query % size > 0
        row = []
        for key in range(n):
            key_group, key_is_mask = key // size, key % size > 0
            if key_is_mask:
                row.append(query_is_mask and key_group == query_group)
            else:
                row.append(key_group <= query_group)
        rows.append(row)
    return torch.tensor(rows)


def prefix_and_tree(prefix: int, drafts: int, masks: int) -> Tensor:
    """A causal prefix, then a draft tree whose rows all see the whole prefix."""
    branches = tree(drafts, masks)
    n = len(branches)
    mask = torch.zeros(prefix + n, prefix + n, dtype=torch.bool)
    mask[:prefix, :prefix] = causal(prefix)
    mask[prefix:, :prefix] = True
    mask[prefix:, prefix:] = branches
    return mask
