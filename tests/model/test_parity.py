"""Logits against transformers' own classes, on tiny random models of every family."""

import pytest
import torch

from tests.reference.families import FAMILIES, build
from trimode.model import KVCache, Runner, Segment, build_runner, expected_tensors

TOLERANCE = 2e-5
"""Relative to the largest logit; fp32 on both sides."""


def forward(model: Runner, cache: KVCache, tokens, positions, visibility="causal"):
    segments = [Segment(0, len(tokens), cache, visibility)]
    return model.logits(model.run(torch.as_tensor(tokens), torch.as_tensor(positions), segments))


def assert_close(ours, theirs):
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < TOLERANCE, f"relative error {error:.2e}"


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_causal_logits_equal_transformers(family):
    oracle, config, tensors = build(family)
    assert {k: tuple(v.shape) for k, v in tensors.items()} == expected_tensors(config)
    model = build_runner(config, tensors.__getitem__, dtype="fp32")
    tokens = torch.randint(config.vocab_size, (90,), generator=torch.Generator().manual_seed(1))
    ours = forward(model, KVCache(config, 90), tokens, range(90))
    assert_close(ours, oracle(tokens[None]).logits[0])


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_logits_at_long_positions_equal_transformers(family):
    oracle, config, tensors = build(family)
    model = build_runner(config, tensors.__getitem__, dtype="fp32")
    tokens = torch.randint(config.vocab_size, (24,), generator=torch.Generator().manual_seed(2))
    start = config.max_position_embeddings - 24
    positions = torch.arange(start, start + 24)
    ours = forward(model, KVCache(config, 24), tokens, positions)
    theirs = oracle(tokens[None], position_ids=positions[None]).logits[0]
    # cos and sin of angles near 4,096 radians carry fp32 rounding of about 2e-4
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < 1e-3


@pytest.mark.parametrize("family", ["llama", "ministral3", "qwen3"])
@pytest.mark.parametrize("visibility", ["block", "explicit"])
@torch.inference_mode()
def test_block_and_explicit_visibility_equal_transformers_with_the_same_mask(family, visibility):
    oracle, config, tensors = build(family)
    model = build_runner(config, tensors.__getitem__, dtype="fp32")
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(config.vocab_size, (20,), generator=generator)
    positions = torch.tensor([*range(12), *(12, 13, 14, 13, 14, 15, 14, 15)])
    inner = torch.rand(8, 8, generator=generator) < 0.5
    inner |= torch.eye(8, dtype=torch.bool)
    if visibility == "block":
        inner[:] = True
    cache = KVCache(config, 20)
    forward(model, cache, tokens[:12], positions[:12])
    cache.keep(range(12))
    ours = forward(
        model, cache, tokens[12:], positions[12:], inner if visibility != "block" else "block"
    )

    allowed = torch.zeros(20, 20, dtype=torch.bool)
    allowed[:12, :12] = torch.ones(12, 12, dtype=torch.bool).tril()
    allowed[12:, :12] = True
    allowed[12:, 12:] = inner
    mask = torch.zeros(20, 20).masked_fill(~allowed, torch.finfo(torch.float32).min)
    theirs = oracle(tokens[None], position_ids=positions[None], attention_mask=mask[None, None])
    assert_close(ours, theirs.logits[0, 12:])


@torch.inference_mode()
def test_bf16_logits_are_close_to_fp32():
    oracle, config, tensors = build("llama")
    model = build_runner(config, tensors.__getitem__, dtype="bf16")
    tokens = torch.arange(40) % config.vocab_size
    cache = KVCache(config, 40, dtype=model.kv_dtype)
    ours = forward(model, cache, tokens, range(40))
    theirs = oracle(tokens[None]).logits[0]
    assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.99
