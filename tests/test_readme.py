"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

from trimode.decoding import CostCurve

pytestmark = pytest.mark.real

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(real_cache, capsys, monkeypatch):
    costs = CostCurve(rows=(1, 64), plain=(0.01, 0.02), adapted=(0.01, 0.02))
    monkeypatch.setattr("trimode.engine.costs.cost_curve", lambda model: costs)  # not timed here
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["answer"].mode == "linear"
    assert len(scope["answers"]) == 2
    assert capsys.readouterr().out.strip()


def test_the_commands_it_names_exist():
    from typer.main import get_command

    from trimode.cli.main import app

    commands = set(re.findall(r"^trimode (\w+)", README.read_text(), re.MULTILINE))
    assert commands
    assert commands <= set(get_command(app).commands)
