"""`trimode verify` and `trimode tune`."""

import json
from unittest.mock import patch

import pytest

from trimode.decoding import CostCurve
from trimode.engine import costs


def test_verify_an_int8_model_is_lossless(cli, letters):
    outcome = cli("verify", letters, "--dtype", "int8", "--max-tokens", 6, "--json")
    found = outcome.json()
    assert outcome.code == 0
    assert found["rows_independent"]
    assert (found["different"], found["kernel"]) == (0, "int8")
    names = {run["name"] for run in found["runs"]}
    assert {"ar", "auto", "linear 5", "quadratic 8", "all modes mixed", "each alone"} <= names


def test_verify_says_what_differs(cli, letters):
    """An engine whose linear mode is made to stumble must be found out."""
    from trimode.evaluation import lossless

    real = lossless._answers

    def stumbling(model, prompts, run, advance):
        found = real(model, prompts, run, advance)
        if run.name == "linear 5":
            found[3][2] += 1
        return found

    with patch.object(lossless, "_answers", stumbling):
        outcome = cli("verify", letters, "--dtype", "int8", "--max-tokens", 4)
    assert outcome.code == 1
    assert "not lossless: 2 of" in outcome.out


def test_verify_refuses_a_file_without_prompts(cli, letters, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("")
    outcome = cli("verify", letters, "--input", path)
    assert outcome.code == 2
    assert "prompts.jsonl" in outcome.err


def test_tune_prints_costs_and_keeps_them(cli, letters, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    found = cli("tune", letters, "--json").json()
    assert found["rows"][0] == 1
    assert found["plain"] == sorted(found["plain"])
    assert all(second > 0 for second in found["adapted"])
    assert set(found["break_even_acceptance"]) >= {"4", "16"}
    (kept,) = (tmp_path / "costs").iterdir()
    assert found["kept_at"] == str(kept)
    with patch("trimode.engine.costs.measure") as measure:
        cli("generate", letters, "hi", "--mode", "auto", "--max-tokens", 4, "--json")
        assert not measure.called
        kept.write_text("{broken")
        measure.return_value = costs.Measurement(CostCurve((1,), (1.0,), (1.0,)), 0.0, 0.0, 9)
        cli("generate", letters, "hi", "--mode", "auto", "--max-tokens", 4, "--json")
        assert measure.called
    assert kept.read_text().startswith('{"rows": [1]')


def test_tune_in_words(cli, letters, llama, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    outcome = cli("tune", "--model", letters)
    assert "linear beats ar from an acceptance length of" in outcome.out
    assert f"kept in {tmp_path}" in outcome.out
    assert "not trained to draft: convert it first" in cli("tune", llama).out


LIMITS = {name: getattr(costs, name) for name in ("MOST_SPREAD", "MOST_WAITED", "LEAST_POINTS")}
"""As they are outside of these tests."""
SHORT = CostCurve((1, 2), (1.0, 5.0), (1.0, 5.0))
CURVE = CostCurve((1, 2, 3, 4, 6, 8), (0.1,) * 6, (0.1,) * 6)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (costs.Measurement(CURVE, 0.9, 0.0, 14), "times of the same pass vary by 90%"),
        (costs.Measurement(CURVE, 0.0, 0.5, 14), "other programs had the processor for 50%"),
        (
            costs.Measurement(CostCurve((1, 2), (1.0, 5.0), (1.0, 5.0)), 0.0, 0.0, 14),
            "only 2 sizes",
        ),
    ],
)
def test_costs_of_a_busy_machine_are_not_kept(
    cli, letters, tmp_path, monkeypatch, caplog, measured, words
):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    for name, value in LIMITS.items():
        monkeypatch.setattr(costs, name, value)
    for module in ("trimode.engine.costs", "trimode.cli.tune"):
        monkeypatch.setattr(f"{module}.measure", lambda *_, **__: measured, raising=False)
    outcome = cli("tune", letters)
    assert outcome.code == 0
    assert f"note: not kept: {words}" in outcome.err
    assert "acceptance length of ." not in outcome.out
    assert cli("generate", letters, "hi", "--mode", "auto", "--max-tokens", 4).code == 0
    assert words in caplog.text
    assert not (tmp_path / "costs").exists()


def test_a_curve_from_before_steadiness_was_required_is_measured_again(
    cli, letters, tmp_path, monkeypatch
):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    cli("tune", letters)
    (kept,) = (tmp_path / "costs").iterdir()
    fields = json.loads(kept.read_text())
    del fields["spread"]
    kept.write_text(json.dumps(fields | {"plain": [9.0] * len(fields["plain"])}))
    cli("generate", letters, "hi", "--mode", "auto", "--max-tokens", 4)
    assert json.loads(kept.read_text())["plain"][0] < 9


@pytest.mark.parametrize("command", ["verify", "tune"])
def test_a_wrong_model_is_named(cli, command):
    outcome = cli(command, "--model", "nowhere/nothing", "--offline")
    assert outcome.code == 2
    assert "nowhere/nothing" in outcome.err
