"""A step's losses: rows alone and together, against NLD's formulas written out."""

import pytest
import torch
import torch.nn.functional as F

from trimode.model import build_runner
from trimode.testing.tiny import tiny_config, tiny_tensors
from trimode.training.adapter import train_everything
from trimode.training.data import Batch
from trimode.training.noise import NoiseConfig
from trimode.training.objective import ObjectiveConfig
from trimode.training.step import BlockConfig, StepConfig, draw_task, losses

JOINT = StepConfig(blocks=BlockConfig(block_length=4))
DRAFTS = StepConfig(
    blocks=BlockConfig(block_length=4, placement="random", noisy_tokens=16),
    noise=NoiseConfig(level="block", weighting="none", draft_share=0.5, seeded_share=0.5),
    objective=ObjectiveConfig(
        diffusion_loss_weight=0.0, distillation_loss_weight=1.0, distance_decay=0.8
    ),
)


def build():
    config = tiny_config("llama")
    tensors = tiny_tensors(config)
    return build_runner(config, tensors.__getitem__, dtype="fp32", plain=True).transformer


def batch(rows=4, length=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    documents = torch.zeros(rows, length, dtype=torch.long)
    for row in range(rows):
        cut = 6 + 3 * row
        documents[row, cut:] = 1
        documents[row, length - row :] = -1
    tokens = torch.randint(0, 250, (rows, length), generator=generator)
    learn = (torch.rand(rows, length, generator=generator) < 0.8) & (documents >= 0)
    return Batch(tokens, documents, learn)


def part(whole, rows):
    return Batch(whole.tokens[rows], whole.documents[rows], whole.learn[rows])


def run(model, data, config, first_row=0):
    task = draw_task(data, config, seed=3, step=5, first_row=first_row)
    found = losses(model, task, config, train_base=True)
    return found, task


@pytest.mark.parametrize("config", [JOINT, DRAFTS])
def test_the_losses_of_a_batch_are_those_of_its_rows_alone(config):
    model, data = build(), batch()
    whole, _ = run(model, data, config)
    rows = [run(model, part(data, slice(i, i + 1)), config, i)[0] for i in range(4)]
    for name, loss in whole.items():
        torch.testing.assert_close(loss.total, sum(row[name].total for row in rows if name in row))
        assert loss.count == sum(row[name].count for row in rows if name in row)


def test_noise_does_not_depend_on_how_a_batch_is_divided():
    data = batch()
    whole = draw_task(data, JOINT, seed=3, step=5, first_row=10)
    for i in range(4):
        alone = draw_task(part(data, slice(i, i + 1)), JOINT, seed=3, step=5, first_row=10 + i)
        count = alone.blocks.starts.shape[1]
        assert torch.equal(whole.noise.masked[i : i + 1, :count], alone.noise.masked)
        assert not whole.noise.masked[i, count:].any()


@pytest.mark.parametrize("shift", [0, 1])
def test_the_joint_losses_are_nlds_formulas(shift):
    """One document without padding: L_AR and the 1/p-weighted L_diff from full logits.

    With token shift the row before predicts a masked token, and no row a block's first one.
    """
    model = build()
    config = StepConfig(blocks=BlockConfig(block_length=4, token_shift=bool(shift)))
    tokens = torch.arange(5, 21)[None]
    data = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    found, task = run(model, data, config)
    clean, noisy = _logits_by_definition(model, data, task, config.blocks.block_length)
    ar = F.cross_entropy(clean[:-1], tokens[0, 1:], reduction="sum")
    torch.testing.assert_close(found["ar"].total, ar, rtol=1e-4, atol=1e-4)
    assert found["ar"].count == 15
    masked = task.noise.masked[0].flatten()
    if shift:
        assert masked[::4].any()
        masked = masked & (torch.arange(16) % 4 > 0)
    (places,) = masked.nonzero(as_tuple=True)
    weights = task.noise.weights[0].flatten()[masked]
    each = F.cross_entropy(noisy[places - shift], tokens[0, masked], reduction="none")
    torch.testing.assert_close(
        found["diffusion"].total, (each * weights).sum(), rtol=1e-4, atol=1e-4
    )
    assert found["diffusion"].count == task.masked_tokens == masked.sum()


def test_the_teacher_of_a_shifted_row_is_the_clean_row_of_the_same_place():
    """KL from the AR prediction of token i to that of noisy row i - 1."""
    model = build()
    tokens = torch.arange(5, 21)[None]
    data = Batch(tokens, torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool))
    config = StepConfig(
        blocks=BlockConfig(block_length=4, token_shift=True),
        noise=NoiseConfig(weighting="none"),
        objective=ObjectiveConfig(diffusion_loss_weight=0.0, distillation_loss_weight=1.0),
    )
    found, task = run(model, data, config)
    clean, noisy = _logits_by_definition(model, data, task, 4)
    before = (task.noise.masked[0].flatten() & (torch.arange(16) % 4 > 0)).nonzero()[:, 0] - 1
    student, teacher = (rows[before].log_softmax(-1) for rows in (noisy, clean))
    divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
    torch.testing.assert_close(found["distillation"].total, divergence, rtol=1e-4, atol=1e-4)


def _logits_by_definition(model, data, task, block_length):
    """[noisy | clean] of twice the length under NLD's mask, as its code runs it."""
    tokens = data.tokens[0]
    n = len(tokens)
    masked = task.noise.masked[0].flatten()
    noisy = torch.where(masked, model.config.mask_token_id, tokens)
    block = torch.arange(n) // block_length
    visible = torch.zeros(2 * n, 2 * n, dtype=torch.bool)
    visible[:n, :n] = block[:, None] == block[None]
    visible[:n, n:] = block[:, None] > block[None]
    visible[n:, n:] = torch.ones(n, n, dtype=torch.bool).tril()

    def attend(_, queries, keys, values):
        groups = queries.shape[1] // keys.shape[1]
        keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1) for x in (keys, values))
        output = F.scaled_dot_product_attention(
            queries.transpose(0, 1), keys, values, attn_mask=visible
        )
        return output.transpose(0, 1).flatten(1)

    positions = torch.arange(n).repeat(2)
    logits = model.logits(model(torch.cat((noisy, tokens)), positions, attend))
    return logits[n:], logits[:n]


def test_gradients_equal_finite_differences():
    model = build().double()
    trained = train_everything(model)
    data = batch(rows=2, length=16)
    task = draw_task(data, JOINT, seed=3, step=5, first_row=0)

    def value():
        found = losses(model, task, JOINT, train_base=True)
        return sum(loss.total for loss in found.values())

    value().backward()
    generator = torch.Generator().manual_seed(0)
    for item in trained[:: max(1, len(trained) // 6)]:
        parameter = item.parameter
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
        slope = float((parameter.grad * direction).sum())
        step = 1e-3
        with torch.no_grad():
            parameter += step * direction
            above = float(value())
            parameter -= 2 * step * direction
            below = float(value())
            parameter += step * direction
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-2, abs=2e-2)
