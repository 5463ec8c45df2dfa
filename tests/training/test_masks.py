"""Where noisy blocks lie and who sees whom, against brute-force definitions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from trimode.training.masks import (
    clean_visibility,
    context_visibility,
    grid_blocks,
    places_in_document,
    random_blocks,
)


@st.composite
def packings(draw):
    """Rows of documents of random lengths with padding behind."""
    length = draw(st.integers(1, 20))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        row, number = [], 0
        while len(row) < length and draw(st.booleans()):
            row += [number] * min(draw(st.integers(1, 9)), length - len(row))
            number += 1
        rows.append(row + [-1] * (length - len(row)))
    return torch.tensor(rows)


def walk(row):
    """(place, document, place in the document) of each token."""
    seen = {}
    for place, document in enumerate(row):
        seen[document] = seen.get(document, -1) + 1
        yield place, document, seen[document]


@given(packings())
def test_positions_start_again_with_each_document(documents):
    for row, found in zip(documents.tolist(), places_in_document(documents).tolist(), strict=True):
        assert [inner for _, _, inner in walk(row)] == found


@given(packings(), st.integers(1, 6), st.integers(0, 5), st.integers(1, 3))
def test_a_grid_tiles_every_document_once_a_copy(documents, block_length, offset, copies):
    offset %= block_length
    blocks = grid_blocks(documents, block_length, copies=copies, offset=offset)
    for row, document_row in enumerate(documents.tolist()):
        expected = {}
        for place, document, inner in walk(document_row):
            if document >= 0:
                expected.setdefault((document, (inner + offset) // block_length), []).append(place)
        found = [
            blocks.index[row, n][blocks.inside[row, n]].tolist()
            for n in range(blocks.starts.shape[1])
        ]
        found = [places for places in found if places]
        assert sorted(found) == sorted(list(expected.values()) * copies)


@given(packings(), st.integers(1, 6), st.integers(1, 3))
def test_groups_tell_documents_and_copies_apart(documents, block_length, copies):
    blocks = grid_blocks(documents, block_length, copies=copies)
    count = blocks.starts.shape[1] // copies
    for row in range(len(documents)):
        names = {}
        for n in range(blocks.starts.shape[1]):
            if blocks.inside[row, n].any():
                key = (int(documents[row, blocks.starts[row, n]]), n // count)
                names.setdefault(int(blocks.groups[row, n]), set()).add(key)
        assert all(len(keys) == 1 for keys in names.values())
        assert len({key for keys in names.values() for key in keys}) == len(names)


@given(packings(), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_random_blocks_start_at_trained_tokens_with_one_behind(documents, length, count, seed):
    generator = torch.Generator().manual_seed(seed)
    learn = torch.rand(documents.shape, generator=generator) < 0.6
    blocks = random_blocks(documents, learn, length, count, generator)
    for row in range(len(documents)):
        document = documents[row].tolist()
        usable = [
            i
            for i in range(len(document) - 1)
            if document[i] >= 0
            and learn[row, i]
            and learn[row, i + 1]
            and document[i] == document[i + 1]
        ]
        starts = blocks.starts[row].tolist()
        if not usable:
            assert not blocks.inside[row].any()
            continue
        assert set(starts) <= set(usable)
        assert len(set(starts)) == min(count, len(usable))
        for n, start in enumerate(starts):
            inside = [
                start + b < len(document) and document[start + b] == document[start]
                for b in range(length)
            ]
            assert blocks.inside[row, n].tolist() == inside


@given(packings(), st.integers(1, 6), st.integers(0, 5))
def test_masks_equal_their_definition(documents, block_length, offset):
    offset %= block_length
    causal = clean_visibility(documents)
    by_block = clean_visibility(documents, "block", block_length, offset)
    blocks = grid_blocks(documents, block_length, offset=offset)
    context = context_visibility(blocks, documents)
    for row, document_row in enumerate(documents.tolist()):
        tokens = list(walk(document_row))
        for i, document, inner in tokens:
            for j, other, other_inner in tokens:
                same = document == other
                if document < 0:
                    assert causal[row, i, j] == by_block[row, i, j] == (i == j)
                    continue
                block, other_block = ((x + offset) // block_length for x in (inner, other_inner))
                assert causal[row, i, j] == (same and j <= i)
                assert by_block[row, i, j] == (same and other_block <= block)
        for n in range(blocks.starts.shape[1]):
            start = int(blocks.starts[row, n])
            home = document_row[start]
            seen = [home >= 0 and d == home and j < start for j, d in enumerate(document_row)]
            assert context[row, n].tolist() == seen
