"""A Markov head: as it is trained, as it decodes, and as a file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trimode.checkpoints.markov_head import FILE, read_markov_head, save_markov_head
from trimode.errors import CheckpointError, InputError
from trimode.model import build_runner
from trimode.model.markov_head import MarkovHeadConfig, MarkovHeadNet, PackedMarkovHead
from trimode.testing.tiny import tiny_config, tiny_tensors

DIM = 64


def transformer(dtype="fp32"):
    config = tiny_config("llama", hidden_size=DIM)
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
    before = torch.tensor([4, 9, 4])
    expected = net(states, model.embedding(before), model.embedding(candidates), 0.0)
    after = PackedMarkovHead(net, model).at(states, candidates)
    for place, token in enumerate(before.tolist()):
        found = torch.from_numpy(after(place, token))
        torch.testing.assert_close(found, expected[place], rtol=0.01, atol=0.01)


def test_states_out_of_bounds_are_numbers_still():
    after = PackedMarkovHead(network(), transformer()).at(
        torch.full((1, DIM), -1e6), torch.tensor([[1, 2]])
    )
    assert np.isfinite(after(0, 3)).all()


def test_a_file_gives_the_same_head(tmp_path):
    net, model = network(), transformer()
    assert read_markov_head(tmp_path, model) is None
    assert save_markov_head(tmp_path, net) == tmp_path / FILE
    read = read_markov_head(tmp_path, model)
    assert read is not None
    states, candidates = torch.randn(1, DIM), torch.tensor([[3, 4, 5]])
    expected = PackedMarkovHead(net, model).at(states, candidates)(0, 7)
    found = read.at(states, candidates)(0, 7)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


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
