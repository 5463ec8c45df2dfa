"""A draft head in its model's weight format, and as a file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from trimode.checkpoints.draft_head import read_draft_head, save_draft_head
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
