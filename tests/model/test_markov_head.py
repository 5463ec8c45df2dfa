"""A Markov head: as it is trained, as it decodes, and as a file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trimode.checkpoints.markov_head import FILE, read_markov_head, save_markov_head
from trimode.decoding.markov import CANDIDATES, Neighbours
from trimode.decoding.speculation.draft_tree import DraftTree, likeliest_tree
from trimode.errors import CheckpointError, InputError
from trimode.model import build_runner
from trimode.model.markov_head import MarkovHeadConfig, MarkovHeadNet, PackedMarkovHead
from trimode.testing.tiny import tiny_config, tiny_tensors

DIM = 64


def transformer(dtype="fp32", **sizes):
    config = tiny_config("llama", hidden_size=DIM, **sizes)
    return build_runner(config, tiny_tensors(config).__getitem__, dtype=dtype).transformer


def network(dim=DIM):
    torch.manual_seed(0)
    config = MarkovHeadConfig(dim=dim, inner=24, rank=8, state_scale=3.0, embedding_scale=0.5)
    return MarkovHeadNet(config).requires_grad_(False)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_it_decodes_as_it_was_trained(dtype):
    net, model = network(), transformer(dtype)
    made = torch.Generator().manual_seed(1)
    states = torch.randn(3, DIM, generator=made)
    candidates = torch.randint(0, 40, (3, 5), generator=made)
    before = torch.tensor([[4, 5], [9, 4], [5, 4]])
    expected = net(states, model.embedding(before), model.embedding(candidates), 0.0)
    after = PackedMarkovHead(net, model).at(states, candidates)
    for place, tokens in enumerate(before.tolist()):
        found = torch.from_numpy(after(place, tuple(tokens)))
        torch.testing.assert_close(found, expected[place], rtol=0.01, atol=0.01)


def test_states_out_of_bounds_are_numbers_still():
    after = PackedMarkovHead(network(), transformer()).at(
        torch.full((1, DIM), -1e6), torch.tensor([[1, 2]])
    )
    assert np.isfinite(after(0, (2, 3))).all()


def drawn(places, vocab, seed):
    made = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(places, vocab, generator=made), torch.randn(places, DIM, generator=made)


def both_trees(head, scores, states, nodes, sharpness=1.0):
    """By the library, and candidate by candidate."""
    most = {"candidates": CANDIDATES, "branches": min(8, nodes), "nodes": nodes}
    found = head.tree(scores, states, sharpness, (6, 7), **most)
    if found is None:
        pytest.skip("no C++ library here")
    places = Neighbours(scores, states, head, sharpness)
    return DraftTree(*map(tuple, found)), likeliest_tree(places, (6, 7), nodes)


@pytest.mark.parametrize("vocab", [21, 100, 64 * 40, 64 * 40 + 13])
@pytest.mark.parametrize("sharpness", [1.0, 2.5])
def test_the_library_s_tree_is_the_one_made_candidate_by_candidate(vocab, sharpness):
    config = MarkovHeadConfig(dim=DIM, inner=27, rank=11, state_scale=0.7, embedding_scale=0.3)
    torch.manual_seed(2)
    head = PackedMarkovHead(
        MarkovHeadNet(config).requires_grad_(False),
        transformer(vocab_size=vocab, mask_token_id=1, bos_token_id=2, eos_token_ids=(3,)),
    )
    branching = 0
    for seed in range(20):
        scores, states = drawn(1 + seed % 6, vocab, seed)
        if seed % 2:  # rows apart from each other, as a part of a pass has them
            scores = torch.stack((scores, scores), 1)[:, 0]
        nodes = 1 + 3 * seed % 17
        found, expected = both_trees(head, scores, states, nodes, sharpness)
        assert found.chances == pytest.approx(expected.chances, rel=1e-3)
        assert (found.tokens, found.parents) == (expected.tokens, expected.parents)
        branching += not found.is_line
    assert branching > 5


def test_tokens_that_are_ruled_out_are_not_drafted():
    head = PackedMarkovHead(network(), transformer(vocab_size=300))
    scores, states = drawn(4, 300, 0)
    scores[:, 3:] = -torch.inf
    found, expected = both_trees(head, scores, states, 12)
    assert set(found.tokens) <= {0, 1, 2}
    assert found.tokens == expected.tokens
    scores[2] = -torch.inf  # nothing may stand there
    found = head.tree(scores, states, 1.0, (6, 7), candidates=CANDIDATES, branches=8, nodes=12)
    assert max(DraftTree(*map(tuple, found)).depths) == 2


def test_a_file_gives_the_same_head(tmp_path):
    net, model = network(), transformer()
    assert read_markov_head(tmp_path, model) is None
    assert save_markov_head(tmp_path, net) == tmp_path / FILE
    read = read_markov_head(tmp_path, model)
    assert read is not None
    states, candidates = torch.randn(1, DIM), torch.tensor([[3, 4, 5]])
    expected = PackedMarkovHead(net, model).at(states, candidates)(0, (6, 7))
    found = read.at(states, candidates)(0, (6, 7))
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "not readable"),
        (lambda path: path.write_bytes(b""), "not readable"),
        (lambda path: save_markov_head(path.parent, network(32)), "hidden states of 32 numbers"),
        (lambda path: save_file({"a": torch.ones(2)}, path), "not readable"),
        (
            lambda path: save_file(
                {"a": torch.ones(2)},
                path,
                {"trimode_markov_head": json.dumps({"dim": DIM, "rank": 0})},
            ),
            "rank",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage, said):
    path = save_markov_head(tmp_path, network())
    damage(path)
    with pytest.raises(CheckpointError, match=said) as found:
        read_markov_head(tmp_path, transformer())
    assert str(path) in str(found.value)


@pytest.mark.parametrize("field", ["dim", "inner", "rank"])
def test_sizes_are_checked(field):
    with pytest.raises(InputError, match=field):
        MarkovHeadConfig(**{"dim": 8, field: 0})
