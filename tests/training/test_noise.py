"""Noise: where masks fall, how often, and what they weigh."""

import pytest
import torch

from trimode.errors import InputError
from trimode.training.masks import assign_blocks
from trimode.training.noise import NoiseConfig, draw_noise, offsets_in_block, rank_generator


def setting(batch=64, length=96, block_length=8):
    blocks = assign_blocks(length, block_length).expand(batch, length)
    return blocks, torch.ones(batch, length, dtype=torch.bool)


def draw(config=None, seed=0, **sizes):
    blocks, trainable = setting(**sizes)
    return draw_noise(config or NoiseConfig(), blocks, trainable, rank_generator(seed))


def test_prompt_tokens_are_never_masked():
    blocks, trainable = setting()
    trainable[:, :30] = False
    noise = draw_noise(NoiseConfig(), blocks, trainable, rank_generator(0))
    assert not noise.masked[:, :30].any()
    assert noise.masked[:, 30:].any()


def test_weights_are_the_inverse_of_the_sequences_mask_probability():
    noise = draw()
    for masked, weights in zip(noise.masked, noise.weights, strict=True):
        assert (weights[~masked] == 0).all()
        assert len(weights[masked].unique()) <= 1
    expected = noise.weights.sum(1).mean() / 96  # E[masked / p] is 1 a token
    assert abs(float(expected) - 1) < 0.1


def test_a_level_a_block_gives_blocks_their_own_weight():
    noise = draw(NoiseConfig(level="block"), block_length=24)
    values = [
        {float(w) for w in weights[masked]}
        for masked, weights in zip(noise.masked, noise.weights, strict=True)
    ]
    assert max(map(len, values)) == 4


def test_the_mask_share_of_sequences_is_uniform():
    shares = draw(batch=4000, length=64).masked.float().mean(1)
    counts = torch.histc(shares, bins=10, min=0, max=1) / 4000
    assert (counts - 0.1).abs().max() < 0.03


def test_each_rank_has_a_stream_of_its_own_and_a_seed_repeats_it():
    blocks, trainable = setting()
    first = [
        draw_noise(NoiseConfig(), blocks, trainable, rank_generator(7, rank)) for rank in (0, 1)
    ]
    again = draw_noise(NoiseConfig(), blocks, trainable, rank_generator(7, 1))
    assert not torch.equal(first[0].masked, first[1].masked)
    assert torch.equal(first[1].masked, again.masked)


def test_draft_blocks_have_a_clean_first_token_and_masks_behind():
    noise = draw(NoiseConfig(draft_share=1.0))
    offsets, _ = offsets_in_block(setting()[0])
    assert torch.equal(noise.masked, offsets > 0)
    assert (noise.weights[noise.masked] == 1).all()


def test_position_bias_masks_the_end_of_a_block_more_and_keeps_the_mean():
    sizes = {"batch": 3000, "length": 32, "block_length": 16}
    plain, biased = draw(**sizes), draw(NoiseConfig(position_half_life=0.5), **sizes)
    share = biased.masked.float().view(-1, 2, 16).mean((0, 1))
    assert share[-1] > 1.5 * share[0]
    assert (share[1:] - share[:-1]).min() > -0.03
    assert abs(float(biased.masked.float().mean() - plain.masked.float().mean())) < 0.06


def test_offsets_count_from_each_blocks_start():
    offsets, lengths = offsets_in_block(assign_blocks(7, 3, offset=1)[None])
    assert offsets.tolist() == [[0, 0, 1, 2, 0, 1, 2]]
    assert lengths.tolist() == [[1, 3, 3, 3, 3, 3, 3]]


@pytest.mark.parametrize("fields", [{"eps": -1}, {"draft_share": 1.5}, {"position_half_life": 0}])
def test_a_value_out_of_range_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        NoiseConfig(**fields)
