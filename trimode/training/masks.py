"""Who sees whom in training: a clean copy of the sequence and a noisy one.

NLD writes them as one sequence [noisy | clean] of twice the length. Here the clean copy goes first
in a pass of its own and the noisy copy attends to its keys and values, which is the same arithmetic
and lets the clean pass go without a gradient where the base weights are frozen.
"""

from typing import Literal

import torch
from torch import Tensor

Context = Literal["causal", "block"]
"""How the clean copy sees itself: token-causal (NLD; allows the AR loss), or block-causal."""


def assign_blocks(length: int, block_length: int, offset: int = 0) -> Tensor:
    """Block index of each position, int64 `[length]`.

    Blocks are cut every `block_length` tokens from position `offset` on; what is before it is a
    shorter first block.
    """
    places = torch.arange(length)
    lead = offset % block_length
    return (places + (block_length - lead) % block_length) // block_length


def clean_visibility(documents: Tensor, blocks: Tensor, context: Context) -> Tensor:
    """Clean copy to itself, bool `[batch, seq, seq]`: query i sees key j.

    Args:
        documents: document of each token in a packed row, int64 `[batch, seq]`; -1 is padding.
        blocks: block index, int64 `[batch, seq]`.
        context: token-causal or block-causal.
    """
    same = _same_document(documents)
    places = torch.arange(documents.shape[1])
    if context == "causal":
        return same & (places[:, None] >= places[None, :])
    return same & (blocks[:, :, None] >= blocks[:, None, :])


def noisy_visibility(documents: Tensor, blocks: Tensor) -> Tensor:
    """Noisy copy to [clean | noisy], bool `[batch, seq, 2 * seq]`.

    A noisy token sees the clean tokens of earlier blocks of its document, and the noisy tokens of
    its own block in both directions.
    """
    same = _same_document(documents)
    earlier = same & (blocks[:, :, None] > blocks[:, None, :])
    own = same & (blocks[:, :, None] == blocks[:, None, :])
    return torch.cat((earlier, own), dim=2)


def _same_document(documents: Tensor) -> Tensor:
    """Pairs within a document; padding sees itself alone, so that no row is empty."""
    same = documents[:, :, None] == documents[:, None, :]
    real = (documents >= 0)[:, :, None]
    itself = torch.eye(documents.shape[1], dtype=torch.bool)
    return torch.where(real, same, itself)
