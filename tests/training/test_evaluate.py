"""Held-out losses: what they are, in which precision, and for how many passes."""

import json
from dataclasses import replace

import pytest
import torch

from tests.training.runs import config_of, metrics, run
from tests.training.test_step import DRAFTS, JOINT, batch, build
from trimode.model.build import choose_runner
from trimode.model.formats import PlainFormat
from trimode.testing import tiny_model
from trimode.training import evaluate, step
from trimode.training.evaluate import held_out_losses
from trimode.training.passes import clean_pass
from trimode.training.step import BlockConfig, ObjectiveConfig, StepConfig, ar_losses, draw_task

BY_BLOCK = StepConfig(
    blocks=BlockConfig(block_length=4, context="block"),
    objective=ObjectiveConfig(ar_loss_weight=0.0),
)


@pytest.fixture
def model():
    return replace(tiny_model("llama"), runner=as_runner(build()))


def as_runner(transformer):
    return choose_runner(transformer, PlainFormat(transformer.dtype, transformer.device))


@pytest.mark.parametrize("config", [JOINT, DRAFTS, BY_BLOCK], ids=["joint", "drafts", "by block"])
def test_they_are_means_over_all_rows_and_always_those_of_ar_too(model, config):
    parts = [batch(seed=1), batch(seed=2)]
    found = held_out_losses(model, parts, config)
    totals, counts = {}, {}
    with torch.no_grad():
        for number, part in enumerate(parts):
            task = draw_task(part, config, seed=-1, step=number, first_row=4 * number)
            each = step.losses(model.transformer, task, config, train_base=False)
            hidden, _ = clean_pass(model.transformer, part.tokens, part.documents)
            each["ar"] = ar_losses(hidden, model.transformer.head.weight, part)
            for name, loss in each.items():
                totals[name] = totals.get(name, 0) + loss.total
                counts[name] = counts.get(name, 0) + loss.count
    assert found == {name: float(totals[name] / counts[name]) for name in totals}
    assert "ar" in found


@pytest.mark.parametrize("config", [JOINT, DRAFTS], ids=["joint", "drafts"])
def test_they_take_one_clean_pass_a_batch_and_no_gradient(model, config, monkeypatch):
    passes, gradients = [], []
    clean, grad = step.clean_pass, torch.autograd.grad
    for module in (step, evaluate):
        monkeypatch.setattr(
            module, "clean_pass", lambda *a, **k: passes.append(1) or clean(*a, **k)
        )
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: gradients.append(1) or grad(*a, **k)
    )
    for parameter in model.transformer.parameters():
        parameter.requires_grad_()
    held_out_losses(model, [batch(seed=1), batch(seed=2)], config)
    assert len(passes) == 2
    assert not gradients


def test_a_run_measures_them_in_its_own_precision(base, tmp_path):
    data = tmp_path / "many.jsonl"
    row = {"prompt": "a", "completion": "b c d e f."}
    data.write_text("".join(json.dumps(row) + "\n" for _ in range(200)))
    found = {}
    for precision in ("fp32", "bf16"):
        config = config_of(
            base, data, tmp_path / precision, evaluation={"every": 1}, steps=1, precision=precision
        )
        trainer, _ = run(config)
        (measured,) = [row for row in metrics(config) if row.get("evaluation")]
        found[precision] = measured["held_out_ar_loss"]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            again = held_out_losses(trainer.model, trainer._held_out, config.step)
        assert again["ar"] == found[precision]
    assert found["bf16"] != found["fp32"]
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.02)
