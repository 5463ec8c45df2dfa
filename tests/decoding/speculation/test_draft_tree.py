"""Draft trees: the likeliest beginnings, and the path that the verifier takes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decoding.test_sampling import sampler, seen
from trimode.decoding.speculation.draft_tree import (
    MAX_BRANCHES,
    ROOT,
    DraftTree,
    Independent,
    likeliest_tree,
)
from trimode.decoding.speculation.verify import follow, masks_of, tree_visibility


def paths(tree):
    """The tokens that lead to each node."""
    found = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        found.append((*(found[parent] if parent != ROOT else ()), token))
    return found


def independent_tree(scores, nodes):
    return likeliest_tree(Independent(scores), (0, 0), nodes)


@settings(max_examples=60, deadline=None)
@given(places=st.integers(1, 4), nodes=st.integers(1, 20), seed=st.integers(0, 999))
def test_the_nodes_are_the_likeliest_beginnings(places, nodes, seed):
    scores = 2 * torch.randn(places, 6, generator=torch.Generator().manual_seed(seed))
    probabilities = scores.double().softmax(-1)
    every = {
        path: float(torch.stack([probabilities[i, t] for i, t in enumerate(path)]).prod())
        for length in range(1, places + 1)
        for path in itertools.product(range(6), repeat=length)
        if all(t in scores[i].topk(min(6, nodes)).indices for i, t in enumerate(path))
    }
    tree = independent_tree(scores, nodes)
    found = paths(tree)
    assert len(set(found)) == len(found) == min(nodes, len(every))
    best = sorted(every.values(), reverse=True)[: len(found)]
    assert sorted((every[path] for path in found), reverse=True) == pytest.approx(best)
    assert tree.chances == pytest.approx([every[path] for path in found], rel=1e-4)
    assert list(tree.chances) == sorted(tree.chances, reverse=True)


def test_a_tree_considers_a_few_tokens_of_a_place_only():
    tree = independent_tree(torch.zeros(1, 50), 40)
    assert len(tree) == MAX_BRANCHES


def test_nothing_to_draft_from_is_an_empty_tree():
    assert len(independent_tree(torch.zeros(0, 9), 5)) == 0
    assert len(independent_tree(torch.zeros(3, 9), 0)) == 0


TREE = DraftTree((5, 7, 6, 8), (ROOT, ROOT, 0, 2), (0.6, 0.3, 0.2, 0.1))
"""5 -> 6 -> 8, and 7 beside 5."""


def test_depth_line_and_prefixes():
    assert TREE.depths == (1, 1, 2, 3)
    assert TREE.main_line() == ([5, 6, 8], pytest.approx([0.6, 1 / 3, 0.5]))
    assert TREE.first(2).tokens == (5, 7)
    assert TREE.up_to(2).parents == (ROOT, ROOT, 0)
    assert TREE.up_to(1).tokens == (5, 7)
    assert not TREE.is_line
    assert DraftTree.line([1, 2], [0.5, 0.5]).chances == (0.5, 0.25)
    assert DraftTree.line([1, 2]).is_line


def test_a_node_sees_its_path():
    seen = TREE.visibility().int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]


@pytest.mark.parametrize("parents", [(), (ROOT, 0, 1), (ROOT, ROOT, 0, 2)], ids=str)
@pytest.mark.parametrize("masks", [0, 1, 3])
def test_masks_see_what_their_node_sees_and_each_other(parents, masks):
    tree = DraftTree(parents, parents)
    visibility, is_mask = tree_visibility(parents, masks)
    nodes = 1 + len(parents)
    assert is_mask.tolist() == [False] * nodes + [True] * (nodes * masks)
    paths_seen = tree.visibility()
    for node in range(-1, len(parents)):
        group = list(masks_of(node, tree, masks))
        for row in group:
            expected = {i for i in range(nodes) if paths_seen[1 + node, i]} | set(group)
            assert set(visibility[row].nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize(
    ("choices", "accepted", "path"),
    [
        ([5, 6, 0, 8, 9], [5, 6, 8, 9], [0, 2, 3]),
        ([7, 1, 2, 1, 1], [7, 2], [1]),
        ([4, 1, 1, 1, 1], [4], []),
        ([5, 7, 1, 1, 1], [5, 7], [0]),
    ],
    ids=str,
)
def test_the_verifier_follows_its_own_choices(choices, accepted, path):
    logits = torch.nn.functional.one_hot(torch.tensor(choices), 12).float()
    assert follow(sampler(), seen(logits), 4, TREE, [1, 2]) == (accepted, path)
