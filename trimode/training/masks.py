"""Who sees whom in training: a clean copy of each sequence, and blocks of noisy copies.

NLD puts both into one sequence [noisy | clean] of twice the length. Here the clean copy runs first,
in a pass of its own, and the noisy blocks attend to its keys and values. The arithmetic is the
same. The clean pass needs no gradient if the base weights are frozen, one clean pass serves any
number of noisy copies, and blocks may start anywhere.

Axis letters: R rows of a batch, L tokens of a row, N blocks of a row, B tokens of a block.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

CleanContext = Literal["causal", "block"]
"""How the clean copy sees itself: token-causal (NLD; allows the AR loss), or block-causal."""

PADDING = -1
"""Document number of padding."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the noisy blocks of a batch lie."""

    starts: Tensor
    """First position of each block in its row, int64 `[R, N]`."""
    index: Tensor
    """Position in the row of each token, cut off at the row's end, int64 `[R, N, B]`."""
    inside: Tensor
    """Whether a token lies in the document that its block starts in, bool `[R, N, B]`. Tokens
    outside are masked and never trained on: a draft does not know where its answer ends."""
    groups: Tensor
    """Blocks of one document and one noisy copy share a number, int64 `[R, N]`."""


def place_blocks(starts: Tensor, documents: Tensor, block_length: int, groups: Tensor) -> Blocks:
    """Blocks of `block_length` at `starts` `[R, N]`.

    A start on padding makes a block that lies wholly outside.
    """
    length = documents.shape[1]
    places = starts[:, :, None] + torch.arange(block_length)
    index = places.clamp(max=length - 1)
    home = documents.gather(1, starts)
    found = documents.gather(1, index.flatten(1)).view_as(index)
    inside = (places < length) & (found == home[:, :, None]) & (home != PADDING)[:, :, None]
    return Blocks(starts, index, inside, groups)


def text_runs(documents: Tensor, pictures: Iterable[tuple[int, slice]]) -> Tensor:
    """Number of each run of text, int64 `[R, L]`: pictures cut documents, and are padding.

    Noisy blocks are placed in runs, so none holds a picture's token and the noisy copy has the
    length of the text. Where blocks see the clean copy, documents count.

    Args:
        documents: int64 `[R, L]`.
        pictures: row and places of the tokens of each.
    """
    pictures = list(pictures)
    if not pictures:
        return documents
    runs = documents.clone()
    for row, span in pictures:
        runs[row, span] = PADDING
    begins = torch.ones_like(runs, dtype=torch.bool)
    begins[:, 1:] = runs[:, 1:] != runs[:, :-1]
    return torch.where(runs == PADDING, runs, begins.cumsum(1))


def grid_blocks(
    documents: Tensor,
    block_length: int,
    *,
    copies: int = 1,
    offset: int = 0,
    runs: Tensor | None = None,
) -> Blocks:
    """Blocks that tile every document `copies` times, as NLD cuts a sequence.

    With `runs` (`text_runs`) they tile each run of text instead.

    The first block of a document has `offset` tokens fewer. All rows get as many blocks as the row
    with the most; the extra blocks lie wholly outside.
    """
    runs = documents if runs is None else runs
    places = places_in_document(runs)
    begins = (runs != PADDING) & ((places == 0) | ((places + offset) % block_length == 0))
    length = documents.shape[1]
    count = max(1, int(begins.sum(1).max()))
    starts = torch.full((len(documents), count), length - 1)
    ends = torch.zeros_like(starts)
    for i, row in enumerate(begins):
        found = row.nonzero()[:, 0]
        starts[i, : len(found)] = found
        ends[i, : len(found)] = torch.cat((found[1:], torch.tensor([length])))[: len(found)]
    groups = documents.gather(1, starts).clamp(min=0)
    placed = place_blocks(starts, runs, block_length, groups)
    inside = placed.inside & (placed.index < ends[:, :, None])
    shift = torch.arange(copies).repeat_interleave(count) * (int(groups.max()) + 1)
    return Blocks(
        starts.repeat(1, copies),
        placed.index.repeat(1, copies, 1),
        inside.repeat(1, copies, 1),
        groups.repeat(1, copies) + shift,
    )


def random_blocks(
    documents: Tensor,
    learn: Tensor,
    block_length: int,
    count: int,
    generator: torch.Generator,
) -> Blocks:
    """`count` blocks in each row, which start at random trained tokens as drafts do in decoding.

    A block's first token stands for the seed, the AR prediction that is known when a draft begins.
    Starts are drawn without replacement while there are enough of them.
    """
    usable = learn & (documents != PADDING)
    usable[:, :-1] &= usable[:, 1:] & (documents[:, :-1] == documents[:, 1:])
    usable[:, -1] = False
    keys = torch.rand(documents.shape, generator=generator)
    order = torch.where(usable, keys, torch.full_like(keys, 2.0)).argsort(dim=1)
    available = usable.sum(1, keepdim=True).clamp(min=1)
    picks = torch.arange(count).expand(len(documents), count) % available
    starts = order.gather(1, picks).sort(dim=1).values  # neighbours see nearly the same keys
    empty = ~usable.any(1)
    starts[empty] = documents.shape[1] - 1
    groups = torch.arange(count).expand_as(starts).contiguous()
    placed = place_blocks(starts, documents, block_length, groups)
    inside = placed.inside & ~empty[:, None, None]
    return Blocks(starts, placed.index, inside, groups)


def clean_visibility(
    documents: Tensor, context: CleanContext = "causal", block_length: int = 1, offset: int = 0
) -> Tensor:
    """Clean copy to itself, bool `[R, L, L]`: query i sees key j of its document.

    Args:
        documents: document of each token in a packed row, int64 `[R, L]`; -1 is padding.
        context: token-causal, or block-causal over the blocks of `grid_blocks`.
        block_length: for block-causal.
        offset: for block-causal, that of `grid_blocks`.
    """
    places = torch.arange(documents.shape[1])
    same = documents[:, :, None] == documents[:, None, :]
    if context == "causal":
        seen = places[:, None] >= places[None, :]
    else:
        blocks = (places_in_document(documents) + offset) // block_length
        seen = blocks[:, :, None] >= blocks[:, None, :]
    itself = places[:, None] == places[None, :]  # padding sees itself, so that no row is empty
    return torch.where((documents != PADDING)[:, :, None], same & seen, itself)


def context_visibility(blocks: Blocks, documents: Tensor) -> Tensor:
    """Noisy blocks to the clean copy, bool `[R, N, L]`: the document's tokens before the block.

    A block sees all of itself, both ways, and no other block.
    """
    home = documents.gather(1, blocks.starts)
    earlier = torch.arange(documents.shape[1]) < blocks.starts[:, :, None]
    return earlier & (documents[:, None, :] == home[:, :, None]) & (home != PADDING)[:, :, None]


def places_in_document(documents: Tensor) -> Tensor:
    """Position of each token in its document, int64 `[R, L]`: RoPE starts again with each."""
    places = torch.arange(documents.shape[1]).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(begins, places, torch.zeros_like(places)).cummax(dim=1).values
