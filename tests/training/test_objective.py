"""Losses against their formulas written out."""

import pytest
import torch

from trimode.errors import InputError
from trimode.training.objective import (
    ObjectiveConfig,
    accepted_and_first_rejected,
    alignment_loss,
    ar_loss,
    diffusion_loss,
    distillation_loss,
    head_loss,
    joint_loss,
)


def example(rows=5, vocab=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator, dtype=torch.double)
    targets = torch.randint(vocab, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator, dtype=torch.double) * 5
    return logits, targets, weights


def test_the_ar_loss_is_a_sum_of_negative_log_likelihoods():
    logits, targets, _ = example()
    loss = ar_loss(logits, targets)
    expected = -sum(torch.log_softmax(row, 0)[t] for row, t in zip(logits, targets, strict=True))
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.count) == 5


def test_the_diffusion_loss_weighs_each_masked_token():
    logits, targets, weights = example()
    rows = zip(logits, targets, weights, strict=True)
    expected = -sum(w * torch.log_softmax(row, 0)[t] for row, t, w in rows)
    torch.testing.assert_close(diffusion_loss(logits, targets, weights).total, expected)


def test_distillation_is_the_weighted_divergence_from_the_ar_distribution():
    (student, _, weights), (teacher, _, _) = example(), example(seed=1)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (weights * (p * (p / q).log()).sum(-1)).sum()
    torch.testing.assert_close(distillation_loss(student, teacher, weights).total, expected)
    same = distillation_loss(teacher, teacher, weights).total
    assert abs(float(same)) < 1e-12


def test_the_teacher_gets_no_gradient():
    (student, _, weights), (teacher, _, _) = example(), example(seed=1)
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(student, teacher, weights).total.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_the_joint_loss_is_one_average_over_all_tokens_of_the_batch():
    a, d = example(4), example(3, seed=1)
    ar, diffusion = ar_loss(*a[:2]), diffusion_loss(*d)
    expected = (ar.total + 0.3 * diffusion.total) / 7
    found = {"ar": ar, "diffusion": diffusion}
    loss = joint_loss(found, {"ar": 1.0, "diffusion": 0.3}, count=7)
    torch.testing.assert_close(loss, expected)


def test_the_loss_of_a_batch_is_that_of_its_rows():
    logits, targets, weights = example(6)
    parts = [
        diffusion_loss(logits[i : i + 2], targets[i : i + 2], weights[i : i + 2]) for i in (0, 2, 4)
    ]
    torch.testing.assert_close(
        sum(parts[1:], parts[0]).mean, diffusion_loss(logits, targets, weights).mean
    )


def test_gradients_equal_finite_differences():
    logits, targets, weights = example()
    teacher = example(seed=1)[0]
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ar_loss(x, targets).total, logits)
    assert torch.autograd.gradcheck(lambda x: diffusion_loss(x, targets, weights).total, logits)
    assert torch.autograd.gradcheck(
        lambda x: distillation_loss(x, teacher, weights, 2.0).total, logits
    )


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_loss_through_the_head_equals_that_over_all_logits(chunk):
    _, targets, weights = example(8)
    hidden = torch.randn(8, 4, dtype=torch.double, requires_grad=True)
    head = torch.randn(7, 4, dtype=torch.double, requires_grad=True)
    whole = diffusion_loss((hidden @ head.T).float(), targets, weights.float()).total
    wanted = torch.autograd.grad(whole * 3, [hidden, head])
    loss = head_loss(
        hidden, head, lambda z, t, w: diffusion_loss(z, t, w).total, targets, weights, chunk=chunk
    )
    found = torch.autograd.grad(loss * 3, [hidden, head])
    torch.testing.assert_close(loss.detach(), whole.detach())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_frozen_head_gets_no_gradient():
    hidden = torch.randn(3, 4, requires_grad=True)
    head = torch.randn(7, 4)
    head_loss(hidden, head, lambda z, t: ar_loss(z, t).total, torch.tensor([1, 2, 3])).backward()
    assert hidden.grad is not None
    assert head.grad is None


@pytest.mark.parametrize(
    "fields", [{"ar_loss_weight": -1}, {"distance_decay": 0}, {"distillation_temperature": 0}]
)
def test_a_value_out_of_range_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        ObjectiveConfig(**fields)


def test_alignment_is_the_published_formula_where_the_support_is_everything():
    (z, _, weights), (v, _, _) = example(vocab=9), example(vocab=9, seed=1)
    p, q = (v / 3).softmax(-1), (z / 3).softmax(-1)
    share = torch.exp(-0.5 * torch.minimum(p, q).sum(-1))
    divergence, variation = (p * (p / q).log()).sum(-1), 0.5 * (p - q).abs().sum(-1)
    choice = -torch.log_softmax(z, -1).gather(1, v.argmax(-1, keepdim=True))[:, 0]
    expected = ((share * divergence + (1 - share) * variation + choice) * weights).sum()
    torch.testing.assert_close(alignment_loss(z, v, weights), expected)


def test_alignment_looks_at_the_best_tokens_of_both_only():
    (z, _, weights), (v, _, _) = example(rows=2, vocab=1000), example(rows=2, vocab=1000, seed=1)
    z.requires_grad_()
    alignment_loss(z, v, weights).backward()
    for row in range(2):
        best = set(z[row].topk(200).indices.tolist()) | set(v[row].topk(200).indices.tolist())
        assert set(z.grad[row].nonzero()[:, 0].tolist()) <= best
        assert z.grad[row].abs().sum() > 0


def test_the_prefix_that_is_accepted_and_the_first_rejection_are_trained():
    matches = torch.tensor([[[0, 1, 1, 0, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]]).bool()
    candidates = torch.tensor([[[0, 1, 1, 1, 1]] * 2 + [[0, 0, 0, 0, 0]]]).bool()
    active = accepted_and_first_rejected(matches, candidates)
    assert active.int().tolist() == [[[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]]
