"""`generate --input`: order, checks before work, and resuming after anything."""

import json
import signal
import time

import pytest

LINES = [
    {"prompt": "one", "id": "a"},
    {"messages": [{"role": "user", "content": "two"}], "id": 7},
    {"prompt": "three", "mode": "linear", "block_size": 4},
    {"prompt": "four", "id": {"row": 4}, "max_new_tokens": 3},
    {"prompt": "five", "temperature": 0.9, "seed": 3},
]


@pytest.fixture
def write(tmp_path):
    def put(lines, name="in.jsonl"):
        path = tmp_path / name
        rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(rows) + "\n")
        return path

    return put


def timeless(rows):
    return [
        {k: v for k, v in row.items() if not k.endswith("second") and k != "seconds"}
        for row in rows
    ]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_results_come_in_input_order_with_ids_first(cli, letters, write):
    rows = cli("generate", letters, "--input", write(LINES), "--max-tokens", 6).rows()
    assert [row.get("id") for row in rows] == ["a", 7, None, {"row": 4}, None]
    assert next(iter(rows[0])) == "id"
    assert [row["completion_tokens"] for row in rows] == [6, 6, 6, 3, 6]
    assert [row["mode"] for row in rows] == ["ar", "ar", "linear", "ar", "ar"]


def test_concurrency_changes_no_answer(cli, letters, write):
    source = write(LINES)
    one = cli("generate", letters, "--input", source, "--concurrency", 1, "--max-tokens", 40).rows()
    many = cli(
        "generate", letters, "--input", source, "--concurrency", 8, "--max-tokens", 40
    ).rows()
    assert timeless(one) == timeless(many)


def test_blank_lines_are_skipped(cli, letters, write):
    rows = cli("generate", letters, "--input", write([LINES[0], "", "  ", LINES[1]])).rows()
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["line 2", "not JSON"]),
        ("[1]", ["line 2", "list", "object"]),
        ({}, ["line 2", "neither prompt nor messages"]),
        ({"prompt": "x", "messages": []}, ["line 2", "prompt and messages"]),
        ({"prompt": ""}, ["line 2", "prompt", "not empty"]),
        ({"prompt": 3}, ["line 2", "prompt", "3"]),
        ({"messages": []}, ["line 2", "messages"]),
        ({"messages": [{"role": "king", "content": "x"}]}, ["line 2", "messages[0].role", "king"]),
        ({"prompt": "x", "thresold": 1}, ["line 2", "thresold", "did you mean threshold?"]),
        ({"prompt": "x", "max_tokens": "3"}, ["line 2", "max_tokens", "'3'"]),
        ({"prompt": "x", "max_tokens": True}, ["line 2", "max_tokens", "True"]),
        ({"prompt": "x", "mode": "fast"}, ["line 2", "mode", "fast"]),
        ({"prompt": "x", "top_p": 2}, ["line 2", "top_p", "2"]),
        ({"prompt": "x" * 2000}, ["line 2", "prompt", "1024"]),
    ],
)
def test_a_wrong_line_is_named_before_any_work(cli, letters, write, tmp_path, line, words):
    output = tmp_path / "out.jsonl"
    outcome = cli("generate", letters, "--input", write([LINES[0], line]), "--output", output)
    assert outcome.code == 2
    assert outcome.out == ""
    assert all(word in outcome.err for word in ["in.jsonl", *words]), outcome.err
    assert not output.exists()


def test_output_holds_what_stdout_would(cli, letters, write, tmp_path):
    source, output = write(LINES), tmp_path / "out.jsonl"
    assert cli("generate", letters, "--input", source, "--output", output).code == 0
    assert timeless(read(output)) == timeless(cli("generate", letters, "--input", source).rows())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_a_killed_run_continues_where_it_stopped(cli, start, letters, write, tmp_path):
    source = write([{"prompt": f"prompt {n}", "id": n, "max_tokens": 60} for n in range(40)])
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    cli("generate", letters, "--input", source, "--output", whole)
    journal = tmp_path / "out.jsonl.partial"
    arguments = ("generate", letters, "--input", source, "--output", output, "--concurrency", 3)
    for wanted in (3, 12):
        process = start(*arguments)
        deadline = time.monotonic() + 60
        while not (journal.exists() and journal.read_bytes().count(b"\n") > wanted):
            assert time.monotonic() < deadline
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {row["line"]: row["result"] for row in read(journal)[1:-1]}
    assert len(kept) >= 11
    assert cli(*arguments).code == 0
    rows = read(output)
    assert timeless(rows) == timeless(read(whole))
    assert all(rows[line - 1] == result for line, result in kept.items()), "computed again"
    assert not journal.exists()


def test_a_torn_last_line_of_the_journal_is_computed_again(cli, letters, write, tmp_path):
    source, output = write(LINES), tmp_path / "out.jsonl"
    cli("generate", letters, "--input", source, "--output", output)
    expected = output.read_bytes()
    rows = read(output)
    fingerprint = _journal_header(cli, letters, source, tmp_path)
    journal = tmp_path / "out.jsonl.partial"
    torn = json.dumps({"line": 2, "result": rows[1]})[:-20]
    journal.write_text(f"{fingerprint}\n{json.dumps({'line': 1, 'result': rows[0]})}\n{torn}")
    output.unlink()
    assert cli("generate", letters, "--input", source, "--output", output).code == 0
    assert timeless(read(output)) == timeless(map(json.loads, expected.splitlines()))


def _journal_header(cli, letters, source, tmp_path):
    """The header such a run writes, taken from one that fails at its end."""
    from trimode.cli import batch

    captured = []
    original = batch.Journal.finish
    batch.Journal.finish = lambda self, _: captured.append(self.path.read_text().split("\n")[0])
    try:
        cli("generate", letters, "--input", source, "--output", tmp_path / "other.jsonl")
    finally:
        batch.Journal.finish = original
    (tmp_path / "other.jsonl.partial").unlink()
    return captured[0]


@pytest.mark.parametrize("change", ["input", "options"])
def test_the_journal_of_another_run_is_refused(cli, letters, write, tmp_path, change):
    source, output = write(LINES), tmp_path / "out.jsonl"
    header = _journal_header(cli, letters, source, tmp_path)
    (tmp_path / "out.jsonl.partial").write_text(header + "\n")
    if change == "input":
        source = write(LINES[:2])
    extra = ["--max-tokens", 5] if change == "options" else []
    outcome = cli("generate", letters, "--input", source, "--output", output, *extra)
    assert outcome.code == 2
    assert "another input or other options" in outcome.err
    again = cli("generate", letters, "--input", source, "--output", output, *extra, "--overwrite")
    assert again.code == 0


def test_an_existing_output_is_kept_unless_overwrite_is_said(cli, letters, write, tmp_path):
    source, output = write(LINES[:1]), tmp_path / "out.jsonl"
    output.write_text("precious\n")
    outcome = cli("generate", letters, "--input", source, "--output", output)
    assert outcome.code == 2
    assert output.read_text() == "precious\n"
    assert cli("generate", letters, "--input", source, "--output", output, "--overwrite").code == 0
    assert len(read(output)) == 1


def test_a_missing_output_directory_is_named(cli, letters, write, tmp_path):
    output = tmp_path / "none" / "out.jsonl"
    outcome = cli("generate", letters, "--input", write(LINES), "--output", output)
    assert outcome.code == 2
    assert "none" in outcome.err
