"""Noise: where masks fall, how often, and what they weigh."""

import pytest
import torch

from trimode.errors import InputError
from trimode.training.masks import grid_blocks
from trimode.training.noise import NoiseConfig, draw_noise, keyed_generator


def setting(batch=64, length=96, block_length=8, copies=1):
    documents = torch.zeros(batch, length, dtype=torch.long)
    blocks = grid_blocks(documents, block_length, copies=copies)
    return blocks, torch.ones(batch, length, dtype=torch.bool)


def draw(config=None, seed=0, **sizes):
    blocks, learn = setting(**sizes)
    return draw_noise(config or NoiseConfig(), blocks, learn, keyed_generator(seed, 0))


def test_prompt_tokens_are_never_masked():
    blocks, learn = setting()
    learn[:, :30] = False
    masked = draw_noise(NoiseConfig(), blocks, learn, keyed_generator(0, 0)).masked
    assert not masked[blocks.index < 30].any()
    assert masked[blocks.index >= 30].any()


def test_what_is_past_the_end_of_a_document_is_not_trained_on():
    blocks, learn = setting(length=10, block_length=8)
    masked = draw_noise(NoiseConfig(draft_share=1.0), blocks, learn, keyed_generator(0, 0)).masked
    assert masked.sum() == 64 * 10


def test_weights_are_the_inverse_of_the_sequences_mask_probability():
    noise = draw()
    for masked, weights in zip(noise.masked, noise.weights, strict=True):
        assert (weights[~masked] == 0).all()
        assert len(weights[masked].unique()) <= 1
    expected = noise.weights.sum((1, 2)).mean() / 96  # E[masked / p] is 1 a token
    assert abs(float(expected) - 1) < 0.1


def test_each_copy_and_document_draws_its_own_level():
    noise = draw(copies=3)
    for masked, weights in zip(noise.masked, noise.weights, strict=True):
        levels = [{float(w) for w in weights[part][masked[part]]} for part in
                  (slice(0, 12), slice(12, 24), slice(24, 36))]  # fmt: skip
        assert all(len(level) <= 1 for level in levels)
        assert len(set().union(*levels)) == sum(map(len, levels))


def test_a_level_a_block_gives_blocks_their_own_weight():
    noise = draw(NoiseConfig(level="block"), block_length=24)
    values = [
        {float(w) for w in weights[masked]}
        for masked, weights in zip(noise.masked, noise.weights, strict=True)
    ]
    assert max(map(len, values)) == 4


def test_the_mask_share_of_sequences_is_uniform():
    shares = draw(batch=4000, length=64).masked.float().mean((1, 2))
    counts = torch.histc(shares, bins=10, min=0, max=1) / 4000
    assert (counts - 0.1).abs().max() < 0.03


def test_streams_differ_by_seed_and_key_and_repeat():
    keys = [(7, "row", 0), (7, "row", 1), (7, "step", 0), (8, "row", 0), (7, "row", 10)]
    draws = {key: tuple(torch.rand(4, generator=keyed_generator(*key)).tolist()) for key in keys}
    assert len(set(draws.values())) == len(keys)
    assert (
        tuple(torch.rand(4, generator=keyed_generator(7, "row", 1)).tolist()) == draws[7, "row", 1]
    )


def test_draft_blocks_are_masked_throughout():
    noise = draw(NoiseConfig(draft_share=1.0))
    assert noise.masked.all()
    assert (noise.weights == 1).all()


def test_seeded_blocks_keep_their_first_token_and_nothing_else_for_it():
    noise = draw(NoiseConfig(draft_share=1.0, seeded_share=1.0))
    assert torch.equal(noise.masked, (torch.arange(8) > 0).expand_as(noise.masked))
    half = draw(NoiseConfig(draft_share=1.0, seeded_share=0.5)).masked
    assert half[:, :, 1:].all()
    assert 0.4 < half[:, :, 0].float().mean() < 0.6


def test_position_bias_masks_the_end_of_a_block_more_and_keeps_the_mean():
    sizes = {"batch": 3000, "length": 32, "block_length": 16}
    plain, biased = draw(**sizes), draw(NoiseConfig(position_half_life=0.5), **sizes)
    share = biased.masked.float().mean((0, 1))
    assert share[-1] > 1.5 * share[0]
    assert (share[1:] - share[:-1]).min() > -0.03
    assert abs(float(biased.masked.float().mean() - plain.masked.float().mean())) < 0.06


@pytest.mark.parametrize(
    "fields", [{"eps": -1}, {"draft_share": 1.5}, {"seeded_share": -0.1}, {"position_half_life": 0}]
)
def test_a_value_out_of_range_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        NoiseConfig(**fields)
