"""Training masks against a brute-force definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trimode.training.masks import assign_blocks, clean_visibility, noisy_visibility


@st.composite
def packings(draw):
    """Documents of random lengths with padding behind, and random blocks."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    padding = draw(st.integers(0, 3))
    documents = [d for d, length in enumerate(lengths) for _ in range(length)] + [-1] * padding
    block_length = draw(st.integers(1, 6))
    offset = draw(st.integers(0, 6))
    return documents, block_length, offset


def blocks_of(length, block_length, offset):
    """By walking: a new block begins at `offset` and every `block_length` tokens from there."""
    index, result = 0, []
    for place in range(length):
        if place > 0 and (place - offset) % block_length == 0:
            index += 1
        result.append(index)
    return result


@given(packings())
def test_blocks_are_cut_from_the_offset_on(packing):
    documents, block_length, offset = packing
    expected = blocks_of(len(documents), block_length, offset % block_length)
    assert assign_blocks(len(documents), block_length, offset).tolist() == expected


@given(packings())
def test_masks_equal_their_definition(packing):
    documents, block_length, offset = packing
    n = len(documents)
    blocks = blocks_of(n, block_length, offset % block_length)
    docs, blks = torch.tensor([documents]), torch.tensor([blocks])
    causal = clean_visibility(docs, blks, "causal")[0]
    block_causal = clean_visibility(docs, blks, "block")[0]
    noisy = noisy_visibility(docs, blks)[0]
    for i in range(n):
        for j in range(n):
            if documents[i] < 0:
                assert causal[i, j] == (i == j)
                continue
            same = documents[i] == documents[j]
            assert causal[i, j] == (same and j <= i)
            assert block_causal[i, j] == (same and blocks[j] <= blocks[i])
            assert noisy[i, j] == (same and blocks[j] < blocks[i])
            assert noisy[i, n + j] == (same and blocks[j] == blocks[i])


@given(packings())
def test_no_row_is_empty(packing):
    documents, block_length, offset = packing
    docs = torch.tensor([documents])
    blocks = assign_blocks(len(documents), block_length, offset)[None]
    assert noisy_visibility(docs, blocks).any(-1).all()
    assert clean_visibility(docs, blocks, "causal").any(-1).all()
