"""`trimode verify` and `trimode tune`."""

from unittest.mock import patch

import pytest

from trimode.decoding import CostCurve


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
    found = cli("tune", "--model", letters, "--json").json()
    assert found["rows"][0] == 1
    assert found["plain"] == sorted(found["plain"])
    assert all(second > 0 for second in found["adapted"])
    assert set(found["break_even_acceptance"]) >= {"4", "16"}
    (kept,) = (tmp_path / "costs").iterdir()
    with patch("trimode.engine.costs.measure") as measure:
        cli("generate", letters, "hi", "--mode", "auto", "--max-tokens", 4, "--json")
        assert not measure.called
        kept.write_text("{broken")
        measure.return_value = CostCurve((1,), (1.0,), (1.0,))
        cli("generate", letters, "hi", "--mode", "auto", "--max-tokens", 4, "--json")
        assert measure.called
    assert kept.read_text().startswith('{"rows": [1]')


def test_tune_in_words(cli, letters, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    outcome = cli("tune", "--model", letters)
    assert "linear beats ar from an acceptance length of" in outcome.out


@pytest.mark.parametrize("command", ["verify", "tune"])
def test_a_wrong_model_is_named(cli, command):
    outcome = cli(command, "--model", "nowhere/nothing", "--offline")
    assert outcome.code == 2
    assert "nowhere/nothing" in outcome.err
