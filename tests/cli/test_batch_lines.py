"""What a line of `--input` may say, and what its result says back."""

import json
from dataclasses import replace

import pytest

from tests.cli.conftest import assert_one_line_error
from trimode import decoding
from trimode.config import GenerationOptions
from trimode.workload import read_lines


@pytest.fixture
def batch(cli, letters, tmp_path):
    """Run lines, given as objects or as raw text, three tokens each."""

    def run(*lines, options=("--max-tokens", 3)):
        path = tmp_path / "in.jsonl"
        rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return cli("generate", letters, "--input", path, *options)

    return run


@pytest.mark.parametrize(
    "name", ["text", "", 7, 0, 1.5, True, False, [1, "a"], {"deep": [None]}, "é"], ids=repr
)
def test_an_id_of_any_type_comes_back_first(batch, name):
    row = batch({"prompt": "hi", "id": name}).json()
    assert next(iter(row)) == "id"
    assert (row["id"], type(row["id"])) == (name, type(name))


def test_without_an_id_the_object_is_that_of_a_single_prompt(batch, cli, letters):
    single = cli("generate", letters, "hi", "--max-tokens", 3, "--json").json()
    row = batch({"prompt": "hi"}).json()
    assert list(row) == list(single)
    assert row["token_ids"] == single["token_ids"]


def test_a_user_message_is_the_same_as_a_prompt(batch):
    prompt, messages = batch(
        {"prompt": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}
    ).rows()
    assert messages["token_ids"] == prompt["token_ids"]
    assert messages["prompt_tokens"] == prompt["prompt_tokens"]


def test_a_message_may_hold_text_parts(batch):
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    plain, split = batch(
        {"prompt": "hi"}, {"messages": [{"role": "user", "content": parts}]}
    ).rows()
    assert split["token_ids"] == plain["token_ids"]


def test_a_null_prompt_beside_messages_is_no_prompt(batch):
    row = {"prompt": None, "messages": [{"role": "user", "content": "hi"}]}
    assert batch(row).json()["completion_tokens"] == 3


def test_the_system_option_goes_before_every_prompt(batch):
    options = ("--max-tokens", 3, "--system", "be brief")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    with_option = batch({"prompt": "hi"}, options=options).json()
    assert with_option["prompt_tokens"] == batch({"messages": turns}).json()["prompt_tokens"]


ALIASES = {
    "max_new_tokens": ("completion_tokens", 5, 5),
    "max_completion_tokens": ("completion_tokens", 5, 5),
    "n_predict": ("completion_tokens", 5, 5),
}


@pytest.mark.parametrize("name", ALIASES)
def test_a_line_may_use_the_names_of_other_programs(batch, name):
    key, value, expected = ALIASES[name]
    assert batch({"prompt": "hi", name: value}).json()[key] == expected


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("temp", "temperature", 3.0),
        ("block_size", "block_length", 1),
        ("canvas_length", "block_length", 1),
        ("confidence_threshold", "threshold", 0.0),
        ("steps", "max_denoising_steps", 1),
    ],
)
def test_an_alias_does_what_its_option_does(batch, alias, name, value):
    base = {"prompt": "hi", "mode": "dlm", "max_tokens": 24}
    plain, own, other = batch(base, base | {name: value}, base | {alias: value}).rows()
    assert (other["token_ids"], other["nfe"]) == (own["token_ids"], own["nfe"])
    assert (own["token_ids"], own["nfe"]) != (plain["token_ids"], plain["nfe"])


def test_a_line_wins_over_the_command_line(batch):
    rows = batch({"prompt": "hi", "max_tokens": 2, "mode": "linear_spec"}, {"prompt": "hi"}).rows()
    assert [(row["completion_tokens"], row["mode"]) for row in rows] == [(2, "linear"), (3, "ar")]


def test_a_line_with_a_mode_of_its_own_takes_over_only_what_that_mode_reads(tmp_path, monkeypatch):
    def inherited(options, mode):
        return options if mode == "diffusion" else replace(options, threshold=None)

    monkeypatch.setattr(decoding, "inherited", inherited)
    path = tmp_path / "in.jsonl"
    rows = [{}, {"mode": "ar"}, {"mode": "dlm"}, {"mode": "ar", "threshold": 0.7}]
    path.write_text("".join(json.dumps({"prompt": "hi"} | row) + "\n" for row in rows))
    defaults = GenerationOptions(mode="diffusion", threshold=0.5)
    found = [(line.options.mode, line.options.threshold) for line in read_lines(path, defaults)]
    assert found == [("diffusion", 0.5), ("ar", None), ("diffusion", 0.5), ("ar", 0.7)]


def test_stop_may_be_one_string_or_a_list(batch):
    whole = batch({"prompt": "hi", "max_tokens": 12}).json()["text"]
    stop = whole[4:6]
    one, several = batch(
        {"prompt": "hi", "max_tokens": 12, "stop": stop},
        {"prompt": "hi", "max_tokens": 12, "stop": ["NEVER", stop]},
    ).rows()
    assert one["text"] == several["text"] == whole[: whole.index(stop)]


def test_results_are_in_input_order_however_long_each_takes(batch):
    lengths = [40, 1, 20, 2, 30, 3]
    lines = [{"prompt": "hi", "id": n, "max_tokens": n} for n in lengths]
    for concurrency in (1, 2, 8):
        rows = batch(*lines, options=("--concurrency", concurrency)).rows()
        assert [row["id"] for row in rows] == lengths
        assert [row["completion_tokens"] for row in rows] == lengths


def test_every_line_has_one_result_with_drafts_asked_for(batch):
    lines = [{"prompt": f"p{n}", "show_drafts": True, "mode": "linear"} for n in range(5)]
    assert len(batch(*lines).rows()) == 5


@pytest.mark.parametrize("ending", ["\r\n", "\n\n\n"])
def test_line_ends_of_any_kind_and_blank_lines_separate_prompts(cli, letters, tmp_path, ending):
    path = tmp_path / "in.jsonl"
    path.write_bytes(ending.join(['{"prompt": "a"}', '{"prompt": "b"}']).encode())
    assert len(cli("generate", letters, "--input", path, "--max-tokens", 2).rows()) == 2


def test_a_line_separator_inside_a_string_ends_no_line(batch):
    assert len(batch('{"prompt": "a\u2028b\x85c"}').rows()) == 1


def test_line_numbers_count_blank_lines(batch):
    outcome = batch('{"prompt": "a"}', "", "", "{")
    assert_one_line_error(outcome, 2, "in.jsonl line 4: not JSON")


def test_a_wrong_line_stops_the_lines_before_it_too(batch):
    outcome = batch({"prompt": "a"}, {"prompt": "b", "top_p": 0})
    assert_one_line_error(outcome, 2, "in.jsonl line 2: top_p: 0")


BAD = {
    "a type": ({"prompt": "x", "max_tokens": 3.5}, "max_tokens: 3.5"),
    "a boolean for a number": ({"prompt": "x", "temperature": True}, "temperature: True"),
    "a string for a boolean": ({"prompt": "x", "ignore_eos": "yes"}, "ignore_eos: 'yes'"),
    "null where there is no default": ({"prompt": "x", "seed": None}, "seed: None"),
    "a number among stop strings": ({"prompt": "x", "stop": ["a", 1]}, "stop: "),
    "a mode that is a list": ({"prompt": "x", "mode": ["ar"]}, "mode: "),
    "infinity": ('{"prompt": "x", "temperature": Infinity}', "temperature: inf"),
    "NaN": ('{"prompt": "x", "temperature": NaN}', "temperature: nan"),
    "a lone surrogate": ({"prompt": "\ud800"}, "prompt: "),
    "messages that are text": ({"messages": "hi"}, "messages: 'hi'"),
    "a message that is text": ({"messages": ["hi"]}, "messages[0]: str"),
    "an unknown role": ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
    "content that is a number": ({"messages": [{"role": "user", "content": 5}]}, "content: int"),
    "a picture": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0].image_url",
    ),
    "false for messages": ({"messages": False}, "messages: False"),
    "both, one of them empty": ({"prompt": "", "messages": []}, "prompt and messages"),
    "neither, both null": ({"prompt": None, "messages": None}, "neither prompt nor messages"),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD)
def test_a_wrong_line_is_refused_with_file_line_and_field(batch, line, words):
    assert_one_line_error(batch({"prompt": "fine"}, line), 2, "in.jsonl line 2: ", words)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            {"messages": [1, 2, 3]},
            id="messages that are numbers",
        ),
        pytest.param(
            "[" * 100_000,
            id="brackets without end",
        ),
        pytest.param(
            {"prompt": "x", "temperature": 10**400},
            id="a number beyond floats",
        ),
    ],
)
def test_a_line_from_hell_is_refused_all_the_same(batch, line):
    assert_one_line_error(batch(line), 2, "in.jsonl line 1")


@pytest.mark.parametrize("line", [{"max_tokens": "3"}, {"mode": 3}], ids=str)
def test_a_wrong_type_is_explained_without_python(batch, line):
    err = batch({"prompt": "x"} | line).err
    assert "<class" not in err
    assert "typing." not in err


def test_columns_of_ones_own_travel_to_the_output(batch):
    line = {"prompt": "hi", "id": 1, "category": "greeting", "reference": {"a": [1]}, "n_words": 2}
    outcome = batch(line)
    row = outcome.json()
    assert list(row)[:4] == ["id", "category", "reference", "n_words"]
    assert (row["category"], row["reference"], row["n_words"]) == ("greeting", {"a": [1]}, 2)
    assert "input_" not in outcome.err


def test_a_column_with_the_name_of_a_result_is_renamed_aloud(batch):
    outcome = batch({"prompt": "hi", "text": "mine", "seconds": 3})
    row = outcome.json()
    assert (row["input_text"], row["input_seconds"]) == ("mine", 3)
    assert row["text"] != "mine"
    assert "column text has the name of a result's field: it is input_text" in outcome.err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("thresold", "threshold"),
        ("Temperature", "temperature"),
        ("max-tokens", "max_tokens"),
        ("blok_length", "block_length"),
        ("sed", "seed"),
        ("stpo", "stop"),
    ],
)
def test_a_near_miss_of_an_option_is_refused(batch, name, meant):
    outcome = batch({"prompt": "hi", name: 1})
    assert_one_line_error(outcome, 2, f"line 1: {name}: no such option; did you mean {meant}?")


@pytest.mark.parametrize(
    "name", ["code", "node", "tag", "source", "seen", "label", "topic", "", " "]
)
def test_an_ordinary_column_is_no_near_miss(batch, name):
    assert batch({"prompt": "hi", name: 1}).json()[name] == 1


def test_two_rows_of_one_id_are_refused_with_both_lines(batch):
    outcome = batch({"prompt": "a", "id": 7}, {"prompt": "b"}, {"prompt": "c", "id": 7})
    assert_one_line_error(outcome, 2, "line 3: id: 7, as line 1; each row needs its own")
    assert len(batch({"prompt": "a", "id": 7}, {"prompt": "c", "id": "7"}).rows()) == 2


def test_openais_batch_format_is_read(batch):
    body = {"model": "gpt-x", "messages": [{"role": "user", "content": "hi"}], "user": "me"}
    line = {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions",
            "body": body | {"max_completion_tokens": 2, "stream": False}}  # fmt: skip
    text = {"custom_id": "r-2", "method": "POST", "url": "/v1/completions",
            "body": {"model": "gpt-x", "prompt": "hi", "max_tokens": 4}}  # fmt: skip
    outcome = batch(line, text)
    first, second = outcome.rows()
    assert (first["custom_id"], first["completion_tokens"]) == ("r-1", 2)
    assert first["prompt_tokens"] == batch({"prompt": "hi"}).json()["prompt_tokens"]
    assert (second["custom_id"], second["completion_tokens"]) == ("r-2", 4)
    assert second["prompt_tokens"] == 2  # two bytes, without the chat template
    assert "rows name the model gpt-x; the model of this command answers" in outcome.err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": "/v1/embeddings"}, "url: '/v1/embeddings'; allowed: /v1/chat/completions"),
        ({"method": "GET"}, "method: 'GET'; must be POST"),
        ({"body": [1]}, "body: list; must be a JSON object"),
        ({"body": {"prompt": "hi"}}, "body.messages: missing"),
        ({"extra": 1}, "extra: given; goes into body"),
    ],
)
def test_a_batch_row_that_cannot_be_done_is_refused(batch, change, words):
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert_one_line_error(batch({"custom_id": "a", "body": body} | change), 2, words)


@pytest.mark.parametrize("field", [{"tools": [{}]}, {"n": 2}, {"response_format": {}}], ids=str)
def test_a_field_of_a_body_that_changes_the_answer_is_refused(batch, field):
    body = {"messages": [{"role": "user", "content": "hi"}]} | field
    name = next(iter(field))
    assert_one_line_error(batch({"custom_id": "a", "body": body}), 2, f"line 1: body.{name}: ")


def test_the_settings_in_force_are_in_the_row(batch):
    linear, denoised, plain = batch(
        {"prompt": "hi", "mode": "linear", "block_length": 4},
        {"prompt": "hi", "mode": "diffusion", "threshold": 0.7},
        {"prompt": "hi", "temperature": 0.5, "seed": 9},
    ).rows()
    assert (linear["block_length"], linear["threshold"]) == (4, None)
    assert (denoised["threshold"], denoised["commit_rule"]) == (0.7, "threshold")
    assert denoised["block_length"] == 32  # the model's own
    assert (plain["temperature"], plain["seed"], plain["max_tokens"]) == (0.5, 9, 3)
    assert "threshold" not in plain


def test_totals_are_said_at_the_end(batch):
    outcome = batch({"prompt": "a"}, {"prompt": "b"})
    assert outcome.err.startswith("2 prompts: 6 tokens in ")
    assert outcome.err.endswith("NFE 6, TPF 1.00; length 2\n")


TABLES = {
    "p.csv": 'id,prompt,temperature,note\r\n1,"one, two",0.5,\r\n2,"two\nlines",0,x\r\n',
    "semicolons.csv": 'id;prompt;temperature;note\n1;"one, two";0.5;\n2;"two\nlines";0;x\n',
    "p.tsv": 'id\tprompt\ttemperature\tnote\n1\t"one, two"\t0.5\t\n2\t"two\nlines"\t0\tx\n',
    "p.json": json.dumps(
        [
            {"id": "1", "prompt": "one, two", "temperature": 0.5},
            {"id": "2", "prompt": "two\nlines", "temperature": 0, "note": "x"},
        ]
    ),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(("name", "text"), TABLES.items(), ids=TABLES)
def test_tables_are_read_with_any_mark_and_line_end(cli, letters, tmp_path, name, text, encoding):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    first, second = cli("generate", letters, "--input", path, "--max-tokens", 2).rows()
    assert (first["id"], first["temperature"], "note" in first) == ("1", 0.5, False)
    assert (second["id"], second["temperature"], second["note"]) == ("2", 0.0, "x")
    single = cli("generate", letters, "one, two", "--max-tokens", 2, "--json").json()
    assert first["prompt_tokens"] == single["prompt_tokens"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,prompt\n1,a,b\n", "line 2: 3 columns; the header has 2"),
        ("id,id\n1,2\n", "line 1: column 'id' twice"),
        ('id,prompt\n1,"a\n', "not CSV"),
        ("id,prompt\n1,a\n2,\n", "line 3: neither prompt nor messages"),
        ("prompt,max_tokens\na,x\n", "line 2: max_tokens: 'x'"),
    ],
)
def test_a_damaged_table_is_refused_by_line(cli, letters, tmp_path, text, words):
    path = tmp_path / "p.csv"
    path.write_text(text)
    assert_one_line_error(cli("generate", letters, "--input", path), 2, words)


def test_parquet_needs_pyarrow_and_says_so(cli, letters, tmp_path, monkeypatch):
    import sys

    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = cli("generate", letters, "--input", path)
    assert_one_line_error(outcome, 2, "Parquet needs the package pyarrow", "trimode[data]")


def test_a_parquet_file_is_read(cli, letters, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "p.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "kind": ["x", None]}), path)
    first, second = cli("generate", letters, "--input", path, "--max-tokens", 2).rows()
    assert first["kind"] == "x"
    assert "kind" not in second
