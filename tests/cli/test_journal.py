"""What `--output` promises: nothing is lost, nothing is computed twice, nothing is half there."""

import json
import subprocess
import time

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.conftest import either_signal

COUNT = 6


def timeless(text):
    rows = [json.loads(line) for line in text.splitlines()]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")} for row in rows
    ]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"prompt": f"prompt {n}", "id": n, "max_tokens": 3 + n % 3} for n in range(COUNT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def batch(cli, letters, source, tmp_path):
    """Run the batch into out.jsonl."""

    def run(*more, model=letters):
        output = tmp_path / "out.jsonl"
        return cli("generate", model, "--input", source, "--output", output, *more)

    return run


@pytest.fixture
def unfinished(batch, monkeypatch, tmp_path):
    """The journal of a run that came to its last line, as bytes; and that run's output."""
    with monkeypatch.context() as patch:
        patch.setattr("trimode.cli.batch.Journal.finish", lambda *_: None)
        assert batch().code == 0
    journal = tmp_path / "out.jsonl.partial"
    content = journal.read_bytes()
    assert content.count(b"\n") == COUNT + 1
    return content


def test_the_output_appears_only_when_all_is_done(unfinished, batch, tmp_path):
    output = tmp_path / "out.jsonl"
    assert not output.exists()
    assert batch().code == 0
    assert len(output.read_text().splitlines()) == COUNT


@pytest.mark.parametrize("share", [0, 0.02, 0.1, 0.3, 0.5, 0.77, 0.99, 0.9999, 1])
def test_a_journal_cut_anywhere_leads_to_the_same_output(unfinished, batch, tmp_path, share):
    journal, output = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl"
    batch()
    expected = timeless(output.read_text())
    output.unlink()
    journal.write_bytes(unfinished[: int(len(unfinished) * share)])
    assert batch().code == 0
    assert timeless(output.read_text()) == expected
    assert not journal.exists()


def test_finished_lines_are_taken_from_the_journal_to_the_digit(unfinished, batch, tmp_path):
    header, *rows = map(json.loads, unfinished.splitlines())
    kept = rows[:4]
    for row in kept:
        row["result"]["seconds"] = 1000.0 + row["line"]
    journal = tmp_path / "out.jsonl.partial"
    journal.write_text("".join(json.dumps(row) + "\n" for row in [header, *kept]))
    batch()
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    seconds = {row["line"]: results[row["line"] - 1]["seconds"] for row in kept}
    assert seconds == {line: 1000.0 + line for line in seconds}
    assert sum(row["seconds"] >= 1000 for row in results) == 4


def test_a_cut_journal_is_repaired_before_it_is_continued(unfinished, batch, monkeypatch, tmp_path):
    journal = tmp_path / "out.jsonl.partial"
    journal.write_bytes(unfinished[: int(len(unfinished) * 0.6)])
    monkeypatch.setattr("trimode.cli.batch.Journal.finish", lambda *_: None)
    batch()
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted(row["line"] for row in rows[1:]) == list(range(1, COUNT + 1))


def test_every_line_is_journalled_once(unfinished):
    lines = [json.loads(line)["line"] for line in unfinished.splitlines()[1:]]
    assert sorted(lines) == list(range(1, COUNT + 1))


def test_every_line_is_journalled_once_with_drafts_asked_for(batch, monkeypatch, tmp_path):
    monkeypatch.setattr("trimode.cli.batch.Journal.finish", lambda *_: None)
    batch("--show-drafts", "--mode", "linear", "--block-length", 4)
    rows = (tmp_path / "out.jsonl.partial").read_text().splitlines()[1:]
    assert len(rows) == COUNT


@pytest.mark.parametrize(
    "change",
    [
        ["--seed", 3],
        ["--mode", "linear"],
        ["--raw"],
        ["--system", "be brief"],
        ["--dtype", "bf16"],
        ["--enable-thinking"],
    ],
    ids=lambda change: change[0],
)
def test_a_journal_of_other_options_is_refused_and_kept(unfinished, batch, tmp_path, change):
    outcome = batch(*change)
    name = change[0].removeprefix("--").replace("-", "_")
    assert_one_line_error(outcome, 2, "output: ", "other options", f"({name} was ", "--overwrite")
    assert (tmp_path / "out.jsonl.partial").read_bytes() == unfinished


def test_a_journal_of_another_model_is_refused(unfinished, batch, llama):
    assert_one_line_error(batch(model=llama), 2, "output: ", "--overwrite")


def test_a_journal_of_another_input_is_refused(unfinished, batch, source):
    source.write_text(source.read_text() + '{"prompt": "one more"}\n')
    assert_one_line_error(batch(), 2, "output: ", "another input")


def test_a_damaged_line_is_said_and_what_follows_is_computed_again(unfinished, batch, tmp_path):
    lines = unfinished.splitlines(keepends=True)
    lines[3] = b'{"line": "torn\n'
    (tmp_path / "out.jsonl.partial").write_bytes(b"".join(lines))
    outcome = batch()
    assert outcome.code == 0
    assert "out.jsonl.partial: line 4 is damaged; 4 lines are computed again" in outcome.err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == COUNT


def test_a_second_run_of_the_same_output_is_refused(batch, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".out.jsonl.lock"):
        assert_one_line_error(batch(), 2, "output: ", "is being written by another run")
    assert batch().code == 0


@pytest.mark.parametrize("change", [["--concurrency", 1], ["--no-progress"]], ids=lambda c: c[0])
def test_options_that_change_no_answer_may_change_between_runs(unfinished, batch, change):
    assert batch(*change).code == 0


def test_an_existing_output_is_refused_before_the_model_is_loaded(batch, tmp_path):
    (tmp_path / "out.jsonl").write_text("precious\n")
    outcome = batch(model=tmp_path / "nosuch")
    assert_one_line_error(outcome, 2, "output: ", "exists", "--overwrite")


def test_overwrite_replaces_output_and_journal(unfinished, batch, tmp_path):
    output = tmp_path / "out.jsonl"
    output.write_text("old\n")
    assert batch("--seed", 3, "--overwrite").code == 0
    assert len(output.read_text().splitlines()) == COUNT
    assert not (tmp_path / "out.jsonl.partial").exists()


@pytest.mark.parametrize("fault", ["model", "prompt"])
def test_a_refused_run_with_overwrite_leaves_the_old_output(batch, source, tmp_path, fault):
    output = tmp_path / "out.jsonl"
    output.write_text("precious\n")
    if fault == "prompt":
        source.write_text(json.dumps({"prompt": "x" * 3000}) + "\n")
    outcome = batch("--overwrite", **({"model": tmp_path / "no"} if fault == "model" else {}))
    assert outcome.code == 2
    assert output.exists()
    assert output.read_text() == "precious\n"


def test_an_output_that_is_the_input_is_refused(cli, letters, source):
    before = source.read_text()
    outcome = cli("generate", letters, "--input", source, "--output", source, "--overwrite")
    assert source.read_text() == before
    assert outcome.code == 2


def test_a_file_that_is_no_journal_is_not_destroyed(batch, tmp_path):
    (tmp_path / "out.jsonl.partial").write_text("my notes\n")
    outcome = batch()
    assert outcome.code == 2
    assert (tmp_path / "out.jsonl.partial").read_text() == "my notes\n"


def test_a_directory_as_output_is_wrong_input_also_with_overwrite(cli, letters, source, tmp_path):
    outcome = cli("generate", letters, "--input", source, "--output", tmp_path, "--overwrite")
    assert_one_line_error(outcome, 2, "output: ")


def test_a_disk_that_is_full_at_the_end_costs_no_result(batch, monkeypatch, tmp_path):
    """The journal stays, and the next run only writes the output."""

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trimode.cli.batch.os.fsync", full)
        outcome = batch()
    assert_one_line_error(outcome, 1, "No space left on device", "out.jsonl.partial.new")
    journal = tmp_path / "out.jsonl.partial"
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert not (tmp_path / "out.jsonl").exists()
    assert batch().code == 0
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert results == [row["result"] for row in sorted(rows, key=lambda row: row["line"])]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@either_signal
def test_an_interrupted_batch_keeps_what_is_done_and_goes_on(
    cli, start, letters, tmp_path, number, code
):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'{{"prompt": "p{n}", "max_tokens": 40}}\n' for n in range(40)))
    journal = tmp_path / "out.jsonl.partial"
    arguments = ("generate", letters, "--input", source, "--output", output, "--concurrency", 2)
    process = start(*arguments)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    end = time.monotonic() + 1
    while process.poll() is None and time.monotonic() < end:  # as launchers of clusters do
        process.send_signal(number)
        time.sleep(0.001)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    done = journal.read_bytes().count(b"\n") - 1
    assert errors.decode() == f"stopped: {done} of 40 done; the same command continues\n"
    assert not output.exists()
    done = {row["line"]: row["result"] for row in map(json.loads, journal.open()) if "line" in row}
    assert cli(*arguments).code == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 40
    assert {line: rows[line - 1] for line in done} == done


@pytest.mark.parametrize("count", [1, 2, 4, COUNT, COUNT + 3])
def test_shards_together_are_the_whole(cli, letters, source, tmp_path, count):
    """Each in its own output; by turns, as `paste` takes them, they are in the input's order."""
    options = ("--temperature", 1, "--seed", 3)
    whole = cli("generate", letters, "--input", source, *options).rows()
    outputs = [tmp_path / f"out-{i}.jsonl" for i in range(count)]
    for i, output in enumerate(outputs):
        asked = ("--output", output, "--shard", f"{i}/{count}", *options)
        assert cli("generate", letters, "--input", source, *asked).code == 0
    paste = subprocess.run(["paste", "-d", "\\n", *outputs], capture_output=True, text=True)
    joined = "".join(f"{line}\n" for line in paste.stdout.splitlines() if line)
    assert timeless(joined) == timeless("".join(json.dumps(row) + "\n" for row in whole))


def test_a_shard_goes_on_and_is_not_mistaken_for_another(cli, letters, source, batch, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimode.cli.batch.Journal.finish", lambda *_: None)
        assert batch("--shard", "1/3").code == 0
    assert_one_line_error(batch("--shard", "2/3"), 2, "shard was '1/3', is '2/3'")
    assert_one_line_error(batch(), 2, "shard was '1/3', is None")
    assert batch("--shard", "1/3").code == 0
    rows = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == [1, 4]


def test_a_journal_of_an_older_version_has_no_shard_and_goes_on(unfinished, batch, tmp_path):
    journal = tmp_path / "out.jsonl.partial"
    header, _, rest = unfinished.partition(b"\n")
    made_with = json.loads(header)["made_with"]
    assert made_with.pop("shard") is None
    journal.write_bytes(json.dumps({"made_with": made_with}).encode() + b"\n" + rest)
    assert batch().code == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == COUNT


def test_rows_of_other_shards_are_checked_too(cli, letters, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "a"}\n{"prompt": 7}\n')
    outcome = cli("generate", letters, "--input", source, "--shard", "0/2")
    assert_one_line_error(outcome, 2, "line 2: prompt: 7")


@pytest.mark.parametrize(
    "shard", ["", "/", "3", "2/2", "-1/2", "0/0", "1 / 2", "a/b", "٠/٢", "0/2/3"]
)
def test_a_shard_that_is_none_is_named(batch, shard):
    assert_one_line_error(batch("--shard", shard), 2, f"shard: {shard!r}; must be I/N")


def test_a_shard_goes_with_a_file(cli, letters):
    outcome = cli("generate", letters, "hi", "--shard", "0/2")
    assert_one_line_error(outcome, 2, "shard: '0/2'; goes with --input")
