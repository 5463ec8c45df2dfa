"""NLD's two stages in one run: AR loss alone, then the diffusion loss joins."""

import json

import pytest
import torch

from tests.training.runs import config_of, metrics, run, weights
from trimode.errors import InputError
from trimode.training.trainer import Trainer

AR_ALONE = {"blocks": {"block_length": 8}, "objective": {"diffusion_loss_weight": 0.0}}


def test_the_first_stage_is_a_run_with_the_ar_loss_alone(base, data, tmp_path):
    constant = {"optimiser": {"learning_rate": 3e-3, "schedule": "constant"}}
    staged, _ = run(config_of(base, data, tmp_path / "a", ar_only_steps=3, steps=3, **constant))
    alone, _ = run(config_of(base, data, tmp_path / "b", step=AR_ALONE, steps=3, **constant))
    for name, value in weights(alone).items():
        assert torch.equal(weights(staged)[name], value), name


def test_no_noisy_pass_runs_before_the_diffusion_loss_joins(base, data, tmp_path, monkeypatch):
    from trimode.training import step

    ran, original = [], step.noisy_pass
    monkeypatch.setattr(step, "noisy_pass", lambda *a, **k: ran.append(1) or original(*a, **k))
    config = config_of(base, data, tmp_path / "run", ar_only_steps=4)
    run(config)
    assert len(ran) == 2
    rows = metrics(config)
    assert [row["stage"] for row in rows] == ["ar"] * 4 + ["joint"] * 2
    for row in rows:
        joint = row["stage"] == "joint"
        assert row["ar_tokens"] > 0
        assert (row["noisy_tokens"] > 0) == (row["masked_tokens"] > 0) == joint
        assert ("diffusion_loss" in row) == joint
        if not joint:
            assert row["loss"] == pytest.approx(row["ar_loss"])


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_a_run_continues_bit_for_bit_on_either_side_of_the_boundary(base, data, tmp_path, cut):
    options = {"ar_only_steps": 3, "ema_decay": 0.9, "save_every": 100}
    whole = config_of(base, data, tmp_path / "whole", **options)
    unbroken, _ = run(whole)
    config = config_of(base, data, tmp_path / "cut", **options)
    first = Trainer(config, progress=False)
    for _ in range(cut):
        first.directory.log(first.train_step())
    first.save()
    first.directory.log(first.train_step())  # is lost
    again, done = run(config)
    assert done
    for name, value in weights(unbroken).items():
        assert torch.equal(weights(again)[name], value), name
    losses = [[row["loss"] for row in metrics(c)] for c in (whole, config)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "change",
    [
        {"ar_only_steps": -1},
        {"ar_only_steps": 7},
        {"ar_only_steps": 2, "train": "adapter"},
        {"ar_only_steps": 2, "step": {"objective": {"ar_loss_weight": 0.0}}},
    ],
)
def test_stages_that_cannot_be_are_refused(base, data, tmp_path, change):
    with pytest.raises(InputError, match="ar_only_steps"):
        config_of(base, data, tmp_path / "run", **change)


def test_the_boundary_of_a_run_cannot_be_moved(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", ar_only_steps=2, steps=3))
    with pytest.raises(InputError, match=r"config\.ar_only_steps 2, not 1"):
        Trainer(config_of(base, data, tmp_path / "run", ar_only_steps=1), progress=False)


def test_a_run_that_is_older_than_a_field_had_its_default(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=1))
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["ar_only_steps"]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="ar_only_steps 0, not 1"):
        Trainer(config_of(base, data, tmp_path / "run", ar_only_steps=1), progress=False)
    assert Trainer(config_of(base, data, tmp_path / "run"), progress=False).run()
