"""A draft head in its model's weight format, and as a file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.decoding.test_sampling import sampler
from trimode.checkpoints.draft_head import read_draft_head, save_draft_head
from trimode.decoding.auto.policy import NodeWorth
from trimode.decoding.speculation.head_draft import head_draft
from trimode.errors import CheckpointError
from trimode.model import Runner, build_runner
from trimode.model.draft_head import DraftHeadConfig, DraftHeadNet, PackedDraftHead, head_rows
from trimode.model.runners import NativeRunner
from trimode.testing.tiny import tiny_config, tiny_tensors

TOKENS = torch.arange(16, 48)


def parts(**overrides):
    config = tiny_config("llama", hidden_size=64, **overrides)
    return config, tiny_tensors(config)


def runner(dtype="fp32", **overrides):
    config, tensors = parts(**overrides)
    return build_runner(config, tensors.__getitem__, dtype=dtype)


def output_rows(**overrides):
    config, tensors = parts(**overrides)
    tied = config.tie_word_embeddings
    return tensors["embed_tokens.weight" if tied else "lm_head.weight"][TOKENS].float()


def network(dim=64):
    torch.manual_seed(0)
    config = DraftHeadConfig(dim=dim, inner=32, state_scale=3.0, embedding_scale=0.5)
    return DraftHeadNet(config).requires_grad_(False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 0.03), ("int8", 0.05), ("int4", 0.35)]
)
def test_a_step_is_the_network_s_in_every_format(dtype, tolerance, tied):
    model = runner(dtype, tie_word_embeddings=tied)
    _, tensors = parts(tie_word_embeddings=tied)
    net, state = network(), torch.randn(64, generator=torch.Generator().manual_seed(1))
    expected = net(state[None], tensors["embed_tokens.weight"][20:21].float())
    logits = expected @ output_rows(tie_word_embeddings=tied).T
    with torch.inference_mode():
        head = PackedDraftHead(net, TOKENS, model)
        after, found = head.step(state.to(model.transformer.dtype), 20)
    assert found.dtype == torch.float32
    assert (after - expected[0]).abs().max() <= tolerance * expected.abs().max()
    assert (found - logits[0]).abs().max() <= tolerance * logits.abs().max()


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_the_output_head(tied):
    found = head_rows(runner(tie_word_embeddings=tied), TOKENS)
    assert torch.allclose(found, output_rows(tie_word_embeddings=tied), atol=1e-6)


def test_a_saved_head_guesses_as_before(tmp_path):
    model, net = runner(), network()
    path = save_draft_head(tmp_path, net, TOKENS)
    assert path.stat().st_size < 1.2 * sum(p.numel() for p in net.parameters()) + 2000, "8 bits"
    again = read_draft_head(tmp_path, model)
    assert again is not None
    state = torch.randn(64)
    with torch.inference_mode():
        for before, after in zip(
            PackedDraftHead(net, TOKENS, model).step(state, 20), again.step(state, 20), strict=True
        ):
            assert (before - after).abs().max() <= 0.03 * before.abs().max()
    assert torch.equal(again.tokens, TOKENS)
    assert [file.name for file in tmp_path.iterdir()] == ["draft_head.safetensors"]


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_library_s_step_is_that_of_its_products(dtype):
    model = runner(dtype)
    if not isinstance(model, NativeRunner):
        pytest.skip("no C++ library here")
    head = PackedDraftHead(network(), TOKENS, model)
    state, embedded = torch.randn(64), torch.randn(64)
    with torch.inference_mode():
        after, logits = model.draft_step(head._parts, state, embedded)
        plain_after, plain_logits = Runner.draft_step(model, head._parts, state, embedded)
    assert torch.allclose(after, plain_after, rtol=1e-4, atol=1e-4)
    assert torch.allclose(logits, plain_logits, rtol=1e-2, atol=1e-2)


class StepByStep:
    """A head without its fast way to a tree, with embeddings of its words in fp16 as there."""

    def __init__(self, head, model):
        self.head, self.model = head, model
        self.tokens, self.vocab_size = head.tokens, head.vocab_size

    def step(self, state, token):
        if token not in TOKENS:
            return self.head.step(state, token)
        parts = self.head._parts
        return self.model.draft_step(parts, state, parts.embedded[token - 16].float())

    def tree(self, *_):
        return None


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.02, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("trust", [1.0, 0.6])
def test_the_library_s_tree_is_the_one_made_step_by_step(dtype, tied, slope, trust):
    model = runner(dtype, tie_word_embeddings=tied)
    if not isinstance(model, NativeRunner):
        pytest.skip("no C++ library here")
    head = PackedDraftHead(network(), TOKENS, model)
    worth = NodeWorth(tuple(slope * (1 + i / 8) for i in range(8)), trust)
    lengths = set()
    for seed in range(20):
        state = 3 * torch.randn(64, generator=torch.Generator().manual_seed(seed))
        history, most = [20, 50 + seed], 1 + seed % 8
        with torch.inference_mode():
            found = head_draft(head, state, history, most, sampler(), worth)
            expected = head_draft(StepByStep(head, model), state, history, most, sampler(), worth)
        assert found.chances == pytest.approx(expected.chances, rel=1e-3)
        assert found.tokens == expected.tokens
        assert found.parents == expected.parents
        lengths.add(len(found))
    assert slope != 2.0 or lengths == {0}, "nothing pays"
    assert slope > 0.1 or max(lengths) > 1


def test_no_file_is_no_head(tmp_path):
    assert read_draft_head(tmp_path, runner()) is None


@pytest.mark.parametrize(
    "damage", ["cut", "other size", "other vocabulary", "no metadata", "shape"]
)
def test_a_damaged_head_is_named(tmp_path, damage):
    net = network(dim=32 if damage == "other size" else 64)
    tokens = TOKENS + 10**6 if damage == "other vocabulary" else TOKENS
    path = save_draft_head(tmp_path, net, tokens)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no metadata":
        save_file({"tokens": TOKENS}, path)
    elif damage == "shape":
        metadata = {"trimode_draft_head": json.dumps({"dim": 64, "inner": 8})}
        save_file({"tokens": TOKENS, "leave.weight": torch.zeros(3, 3)}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"draft_head\.safetensors"):
        read_draft_head(tmp_path, runner())
