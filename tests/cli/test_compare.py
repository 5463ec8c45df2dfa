"""`trimode compare`, `models` and `env` beyond their first lines."""

import json

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.cli.test_generate import KEYS
from trimode.testing.tiny import write_tiny_checkpoint


def cells(outcome):
    """First column of the table -> the other columns."""
    rows = [line.strip("│").split("│") for line in outcome.out.splitlines() if line[:1] == "│"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_the_table_agrees_with_the_json_objects(cli, letters):
    arguments = ("compare", letters, "hi", "--max-tokens", 10)
    table = cells(cli(*arguments))
    results = cli(*arguments, "--json").json()["results"]
    assert list(table) == [row["mode"] for row in results]
    for row in results:
        tokens, nfe, tpf, acceptance, *_ = table[row["mode"]]
        assert (tokens, nfe) == (str(row["completion_tokens"]), str(row["nfe"]))
        assert tpf == f"{row['tokens_per_forward']:.2f}"
        accepted = row["acceptance_length"]
        assert acceptance == ("" if accepted is None else f"{accepted:.2f}")


def test_the_answer_of_the_first_mode_is_printed_above_the_table(cli, letters):
    text = cli("generate", letters, "hi", "--max-tokens", 10, "-q").out
    assert cli("compare", letters, "hi", "--max-tokens", 10).out.startswith(f"ar: {text}")


def test_the_lossless_modes_are_the_same_as_ar_and_diffusion_says_where_not(cli, letters):
    table = cells(cli("compare", letters, "hi", "--max-tokens", 10))
    assert (table["ar"][-1], table["linear"][-1], table["quadratic"][-1]) == ("", "yes", "yes")
    results = cli("compare", letters, "hi", "--max-tokens", 10, "--json").json()["results"]
    ar, diffusion = (results[i]["token_ids"] for i in (0, 3))
    differs = next(i for i, (a, b) in enumerate(zip(ar, diffusion, strict=True)) if a != b)
    assert table["diffusion"][-1] == f"no, from token {differs + 1}"


@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_the_lossless_modes_are_the_same_as_ar_while_sampling(cli, letters, temperature):
    outcome = cli(
        "compare", letters, "hi", "--max-tokens", 20, "--temperature", temperature, "--seed", 4,
        "--modes", "ar,linear,quadratic",
    )  # fmt: skip
    assert [row[-1] for row in cells(outcome).values()] == ["", "yes", "yes"]


def test_every_json_result_has_the_keys_of_the_design(cli, letters):
    outcome = cli("compare", letters, "hi", "--max-tokens", 3, "--json")
    assert list(outcome.json()) == ["results"]
    assert [list(row) for row in outcome.json()["results"]] == [KEYS] * 4
    assert outcome.err == ""


def test_modes_are_run_in_the_order_asked_for_and_compared_with_the_first(cli, letters):
    outcome = cli("compare", letters, "hi", "--max-tokens", 5, "--modes", "quadratic, ar")
    assert list(cells(outcome)) == ["quadratic", "ar"]
    assert "same as quadratic" in outcome.out


def test_the_prompt_may_come_from_stdin(cli, letters):
    outcome = cli("compare", "-m", letters, "--max-tokens", 3, "--json", stdin="hello")
    word = cli("compare", letters, "hello", "--max-tokens", 3, "--json")
    first, second = (o.json()["results"][0] for o in (outcome, word))
    assert first["token_ids"] == second["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modes", "ar,linear,ar"], "modes: ar,linear,ar"),
        (["--modes", "ar,magic"], "mode: 'magic'"),
        (["--modes", ""], "mode: ''"),
        (["--block-length", "0"], "block_length: 0"),
        (["--temperature", "nan"], "temperature: nan"),
        (["--max-tokens", "0"], "max_tokens: 0"),
    ],
)
def test_wrong_values_are_refused(cli, letters, arguments, words):
    assert_one_line_error(cli("compare", letters, "hi", *arguments), 2, words)


def test_a_mode_named_twice_by_an_alias_is_refused(cli, letters):
    outcome = cli("compare", letters, "hi", "--modes", "ar,autoregressive", "--max-tokens", 2)
    assert_one_line_error(outcome, 2, "modes: ")


def test_an_empty_prompt_is_refused_beside_a_system_message_too(cli, letters):
    outcome = cli("compare", letters, "", "--system", "be brief", "--max-tokens", 2)
    assert_one_line_error(outcome, 2, "prompt: empty")


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
