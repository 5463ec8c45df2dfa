"""`trimode compare`: the table, the objects, and what each mode is asked."""

import json
from dataclasses import replace

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.cli.test_generate import keys
from trimode import decoding
from trimode.engine import Engine
from trimode.testing.tiny import write_tiny_checkpoint


def cells(outcome):
    """First column of the table -> the other columns."""
    rows = [line.strip("│").split("│") for line in outcome.out.splitlines() if line[:1] == "│"]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_compare_says_that_speculation_equals_ar(cli, llama):
    outcome = cli("compare", llama, "hi", "--max-tokens", 12)
    assert outcome.code == 0
    rows = {line.split()[1]: line for line in outcome.out.splitlines() if line.startswith("│")}
    assert set(rows) == {"ar", "linear", "quadratic", "diffusion", "auto"}
    assert "yes" in rows["linear"]
    assert "yes" in rows["quadratic"]


def test_compare_says_that_an_unconverted_model_was_not_trained_for_it(cli, llama, nld):
    assert "never trained to fill masks" in cli("compare", llama, "hi", "--max-tokens", 4).out
    assert "never trained" not in cli("compare", nld, "hi", "--max-tokens", 4).out


def test_compare_prints_json(cli, llama):
    outcome = cli("compare", llama, "hi", "--modes", "ar,linear", "--max-tokens", 5, "--json")
    ar, linear = json.loads(outcome.out)["results"]
    assert ar["token_ids"] == linear["token_ids"]
    assert [ar["mode"], linear["mode"]] == ["ar", "linear"]


def test_compare_refuses_a_mode_named_twice(cli, llama):
    outcome = cli("compare", llama, "hi", "--modes", "ar,ar")
    assert outcome.code == 2
    assert "modes" in outcome.err


def test_the_table_agrees_with_the_json_objects(cli, letters):
    arguments = ("compare", letters, "hi", "--max-tokens", 10, "--block-length", 6)
    table = cells(cli(*arguments))
    results = cli(*arguments, "--json").json()["results"]
    assert list(table) == [row["mode"] for row in results]
    results = [row for row in results if row["mode"] != "auto"]  # which decides by what it times
    for row in results:
        block, tokens, nfe, tpf, acceptance, *_ = table[row["mode"]]
        assert block == ("" if row["mode"] == "ar" else "6")
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
    ar, diffusion = (results[i]["token_ids"] for i in (0, -1))
    differs = next(i for i, (a, b) in enumerate(zip(ar, diffusion, strict=True)) if a != b)
    assert table["diffusion"][-1] == f"no, from token {differs + 1}"


def test_every_text_that_differs_is_printed(cli, letters):
    arguments = ("compare", letters, "hi", "--max-tokens", 10)
    ar, *_, diffusion = cli(*arguments, "--json").json()["results"]
    assert diffusion["text"] != ar["text"]
    lines = cli(*arguments).out.splitlines()
    assert [line for line in lines if line.startswith(("linear:", "diffusion:"))] == [
        f"diffusion: {diffusion['text']}"
    ]


def test_each_row_is_printed_when_its_mode_is_done(start, endless):
    process = start("compare", endless, "hi", "--modes", "ar,linear", "--max-tokens", 2000)
    lines = []
    while not any("│ ar " in line for line in lines):
        line = process.stdout.readline().decode()
        assert line, process.stderr.read()
        lines.append(line)
    assert process.poll() is None  # linear is still at work


def test_modes_that_a_model_cannot_run_are_left_out_unless_asked_for(cli, tmp_path):
    stock = write_tiny_checkpoint(tmp_path / "stock", "llama", mask_token_id=None)
    outcome = cli("compare", stock, "hi", "--max-tokens", 3)
    assert list(cells(outcome)) == ["ar", "auto"]
    assert "note: stock has no mask token: no linear, quadratic, diffusion;" in outcome.err
    refused = cli("compare", stock, "hi", "--modes", "ar,linear")
    assert_one_line_error(refused, 2, "mode: linear on stock, which has no mask token")


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
    ar, auto, *blocks = outcome.json()["results"]
    plain = [ar, *blocks]
    modes = ["ar", "linear", "quadratic", "diffusion"]
    assert [list(row) for row in plain] == [keys(mode) for mode in modes]
    assert auto["mode"] == "auto"
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


def read_by_linear_only(options, mode):
    """As if `linear` alone read a block length and a threshold."""
    if mode == "linear":
        return options
    return replace(options, block_length=None, threshold=None)


@pytest.fixture
def asked(monkeypatch):
    """Options of the requests that were made, by mode."""
    monkeypatch.setattr(decoding, "inherited", read_by_linear_only)
    found = {}
    add = Engine.add

    def spy(engine, prompt, options=None, **more):
        found[options.mode] = options
        return add(engine, prompt, options, **more)

    monkeypatch.setattr(Engine, "add", spy)
    return found


def test_each_mode_gets_the_options_that_it_reads(cli, letters, asked):
    blocks = ("--threshold", 0.5, "--block-length", 8)
    arguments = ("--modes", "ar,linear", "--max-tokens", 3, *blocks)
    assert cli("compare", letters, "hi", *arguments).code == 0
    assert (asked["ar"].block_length, asked["ar"].threshold) == (None, None)
    assert (asked["linear"].block_length, asked["linear"].threshold) == (8, 0.5)


def test_an_option_that_none_of_the_modes_reads_is_refused(cli, letters, asked):
    outcome = cli("compare", letters, "hi", "--modes", "ar,quadratic", "--threshold", 0.5)
    assert_one_line_error(outcome, 2, "threshold: 0.5", "ar,quadratic")
    assert not asked


def test_a_default_that_none_of_the_modes_reads_is_no_error(cli, letters, asked):
    assert cli("compare", letters, "hi", "--modes", "ar", "--max-tokens", 3).code == 0
    assert asked["ar"].block_length is None


def test_the_end_says_what_pays_here(cli, letters):
    """By figures of this run, whatever they are."""
    outcome = cli("compare", letters, "hi", "--max-tokens", 10)
    last = outcome.out.splitlines()[-1]
    assert last.startswith("Here ")
    assert "a pass of 8 rows costs" in last or "A pass of 8 rows costs" in last
    alone = cli("compare", letters, "hi", "--max-tokens", 4, "--modes", "ar").out.splitlines()
    assert not any(line.startswith("Here ") for line in alone)


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ({"ar": 100, "auto": 130, "linear": 60}, "Here auto pays: 1.30 times as fast as ar"),
        ({"ar": 100, "auto": 130, "linear": 60}, "linear lose"),
        ({"ar": 100, "auto": 101, "diffusion": 300}, "Here ar is as fast as anything"),
        ({"ar": 100, "auto": 110, "linear": 150}, "Here linear pays: 1.50 times"),
    ],
)
def test_what_pays_is_the_fastest_lossless_mode(letters, speeds, said):
    from trimode import load
    from trimode.cli.compare import _what_pays

    assert said in _what_pays(load(letters), speeds)


def test_the_demo_answers_two_prompts_in_every_mode(cli, letters):
    outcome = cli("demo", "--model", letters, "--max-tokens", 8)
    table = cells(outcome)
    assert list(table) == ["ar", "auto", "linear", "quadratic", "diffusion"]
    assert [row[1] for row in table.values()] == ["16"] * 5, "both answers together"
    assert "prose" in outcome.out
    assert "code" in outcome.out
    assert [table[mode][-1] for mode in ("auto", "linear", "quadratic")] == ["yes"] * 3
