"""Files of prompts in the forms that people have them in."""

import json

import pytest

from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.workload import Columns, read_lines, read_workload

DEFAULTS = GenerationOptions()
TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture
def rows(tmp_path):
    """Read objects as a workload."""

    def read(*objects, reader=read_workload, **columns):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in objects))
        return reader(path, DEFAULTS, columns=Columns(**columns))

    return read


def share(turn):
    return {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}


@pytest.mark.parametrize("name", ["prompt", "question", "Question", "instruction", "User Prompt"])
def test_the_prompt_is_found_under_its_usual_names(rows, name):
    (line,) = rows({"topic": "a", name: "hi", "owner": "me"})
    assert line.prompt == "hi"
    assert line.columns == {"topic": "a", "owner": "me"}


def test_prompt_wins_over_the_other_names_and_they_travel_through(rows):
    (line,) = rows({"question": "q", "text": "t", "prompt": "p"})
    assert (line.prompt, line.columns) == ("p", {"question": "q", "text": "t"})


def test_the_columns_are_the_same_in_every_row(rows):
    """A row that lacks its prompt must not be answered from another column."""
    with pytest.raises(InputError, match="line 2: neither prompt nor messages"):
        rows({"prompt": "p", "text": "t"}, {"text": "t"})


def test_columns_may_be_named(rows):
    (line,) = rows(
        {"prompt": "no", "frage": "yes", "antwort": 4}, prompt="frage", reference="antwort"
    )
    assert (line.prompt, line.reference) == ("yes", 4)
    assert line.columns == {"prompt": "no", "antwort": 4}


@pytest.mark.parametrize("columns", [{"prompt": "x"}, {"reference": "x"}])
def test_a_named_column_that_is_not_there_is_refused_with_those_that_are(rows, columns):
    with pytest.raises(InputError, match="'x'; the columns are prompt, why"):
        rows({"prompt": "p", "why": 1}, **columns)


@pytest.mark.parametrize("name", ["reference", "Answer", "expected_output", "label", "completion"])
def test_the_reference_is_found_and_still_travels_through(rows, name):
    (line,) = rows({"prompt": "p", name: "r"})
    assert (line.reference, line.columns[name]) == ("r", "r")
    (line,) = rows({"prompt": "p", name: "r"}, reader=read_lines)
    assert (line.reference, line.columns[name]) == (None, "r")


def test_a_row_may_lack_its_reference(rows):
    assert [line.reference for line in rows({"prompt": "a", "answer": "x"}, {"prompt": "b"})] == [
        "x",
        None,
    ]


def test_alpaca_has_its_input_beside_the_instruction(rows):
    first, second = rows(
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "Sing.", "input": "", "output": "la"},
    )
    assert (first.prompt, first.reference) == ("Add.\n\n1 2", "3")
    assert second.prompt == "Sing."


@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_conversation_is_cut_before_its_last_answer(rows, form):
    turns = TURNS if form == "messages" else [share(turn) for turn in TURNS]
    (line,) = rows({form: turns, "id": 1})
    assert (line.prompt, line.reference) == (TURNS[:3], "four")
    (line,) = rows({form: turns[:3], "id": 1})
    assert (line.prompt, line.reference) == (TURNS[:3], None)


def test_generate_goes_on_with_a_conversation_as_it_stands(rows):
    (line,) = rows({"messages": TURNS}, reader=read_lines)
    assert line.prompt == TURNS


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], r"conversations: \[\]"),
        ([{"from": "king", "value": "x"}], r"conversations\[0\].from: 'king'"),
        ([{"from": "human", "value": 3}], r"conversations\[0\].value: 3"),
        (["x"], r"conversations\[0\]: str"),
        ([{"from": "gpt", "value": "x"}], "no turn to answer"),
    ],
)
def test_a_damaged_conversation_is_refused_by_place(rows, turns, words):
    with pytest.raises(InputError, match=words):
        rows({"conversations": turns})


@pytest.mark.parametrize("reader", [read_lines, read_workload])
def test_a_slip_in_an_options_name_is_refused_by_both_readers(rows, reader):
    with pytest.raises(InputError, match="temprature: no such option; did you mean temperature"):
        rows({"prompt": "p", "temprature": 1}, reader=reader)


def test_the_options_that_a_row_gives_are_known(rows):
    (line,) = rows({"prompt": "p", "mode": "linear", "max_tokens": 3})
    assert line.given == {"mode", "max_tokens"}


def test_a_text_file_is_a_prompt_a_line(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n\ntwo\n")
    assert [line.prompt for line in read_workload(path, DEFAULTS)] == ["one", "two"]


LAYOUTS = {
    "hub": ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl"),
    "hub without data": ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
    "saved": ("train/data-00000-of-00002.jsonl", "train/data-00001-of-00002.jsonl"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_directory_is_read_part_after_part(tmp_path, layout):
    for number, name in enumerate(layout):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"question": f"q{number}"}) + "\n")
    (tmp_path / "dataset_dict.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "other.jsonl").write_text("{")
    assert [line.prompt for line in read_workload(tmp_path, DEFAULTS)] == ["q0", "q1"]


def test_a_directory_with_several_parts_needs_one_named(tmp_path):
    for name in ("test", "train"):
        (tmp_path / f"{name}-00000-of-00001.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    with pytest.raises(InputError, match="has the parts test, train; choose one: --split"):
        read_workload(tmp_path, DEFAULTS)
    (line,) = read_workload(tmp_path, DEFAULTS, columns=Columns(split="test"))
    assert line.prompt == "test"
    with pytest.raises(InputError, match="split: 'dev'"):
        read_workload(tmp_path, DEFAULTS, columns=Columns(split="dev"))


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(InputError, match="no rows in it"):
        read_workload(tmp_path, DEFAULTS)


def test_a_directory_as_datasets_saves_it_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"question": ["a", "b"], "answer": ["x", None]})
    path = tmp_path / "data-00000-of-00001.arrow"
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    found = [(line.prompt, line.reference) for line in read_workload(tmp_path, DEFAULTS)]
    assert found == [("a", "x"), ("b", None)]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def test_a_form_of_answers_becomes_their_grammar(rows):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    plain, formed, some = rows(
        {"prompt": "p", "response_format": {"type": "text"}},
        {"prompt": "p", "response_format": form},
        {"prompt": "p", "response_format": {"type": "json_object"}},
    )
    assert (plain.form, plain.options.grammar) == (None, None)
    assert formed.form == form
    assert "integer" in formed.options.grammar
    assert some.options.grammar not in (None, formed.options.grammar)


@pytest.mark.parametrize("form", [{}, [], "json", {"type": "xml"}, {"type": "json_schema"}])
def test_a_form_that_is_none_is_refused(rows, form):
    with pytest.raises(InputError, match="line 1: response_format: "):
        rows({"prompt": "p", "response_format": form})


def test_a_table_may_hold_conversations_as_json(tmp_path):
    path = tmp_path / "p.csv"
    text = json.dumps([share(turn) for turn in TURNS[:1]]).replace('"', '""')
    path.write_text(f'id,conversations\n1,"{text}"\n')
    (line,) = read_workload(path, DEFAULTS)
    assert line.prompt == TURNS[:1]
