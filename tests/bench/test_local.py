"""Groups of prompts through an engine of this process."""

import pytest

from trimode.bench.local import LocalTarget
from trimode.bench.settings import LOCAL, Setting
from trimode.config import GenerationOptions
from trimode.testing.tiny import tiny_model


@pytest.mark.parametrize("load", [1, 2])
def test_a_group_is_given_up_after_a_time_and_nothing_of_it_runs_on(load):
    model = tiny_model()
    options = GenerationOptions(max_tokens=8, ignore_eos=True)
    prompts = {number: (1 + number, 2, 3) for number in range(3)}
    target = LocalTarget(model, prompts, dict.fromkeys(prompts, options), None)
    setting = Setting(LOCAL, "ar", load, None, None)
    assert target.measure(setting, list(prompts), 0, longest=0.0) is None
    (engine,) = (engine for _, engine in target._engines.values())
    assert not engine.busy
    answers = target.measure(setting, list(prompts), 0)
    assert [len(answer.token_ids) for answer in answers] == [8] * 3
