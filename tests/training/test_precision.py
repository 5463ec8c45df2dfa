"""What a run computes in, and what evaluation measures in it."""

import json

import pytest

from tests.training.runs import config_of, run
from trimode.errors import InputError
from trimode.model import cpu_multiplies_bf16
from trimode.training.trainer import Trainer


def recorded(output):
    return json.loads((output / "config.json").read_text())["config"]["precision"]


def test_auto_is_what_the_cpu_multiplies_and_the_run_says_which(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", precision="auto", device="cpu", steps=1))
    wanted = "bf16" if cpu_multiplies_bf16() else "fp32"
    assert recorded(tmp_path / "run") == wanted


@pytest.mark.parametrize("begun", ["fp32", "bf16"])
def test_a_run_goes_on_in_the_precision_it_began_in(base, data, tmp_path, begun):
    run(config_of(base, data, tmp_path / "run", precision=begun, steps=1))
    trainer = Trainer(config_of(base, data, tmp_path / "run", precision="auto"), progress=False)
    assert trainer.config.precision == begun == recorded(tmp_path / "run")


def test_a_directory_whose_config_is_damaged_is_refused(base, data, tmp_path):
    run(config_of(base, data, tmp_path / "run", steps=1))
    (tmp_path / "run" / "config.json").write_text('{"config": ')
    with pytest.raises(InputError, match="is not the config of a run"):
        Trainer(config_of(base, data, tmp_path / "run", precision="auto"), progress=False)
