"""Rows of prompts under Ray Data."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray")

import pyarrow as pa
import pyarrow.parquet as pq

from tests.ray.cluster import EXAMPLES
from trimode import generate as generate_one
from trimode import load
from trimode.engine.result import RESULT_FIELDS
from trimode.errors import InputError
from trimode.ray.dataset import RESULTS, Generate, generate
from trimode.testing import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("data") / "m")


@pytest.fixture(scope="module")
def answers(tiny):
    return Generate(model=str(tiny), dtype="fp32", max_tokens=8, ignore_eos=True, sequences=3)


def test_results_are_those_of_generate_in_the_order_of_the_rows(tiny, answers):
    rows = [
        {"id": n, "prompt": f"p{n}", "source": f"s{n}", "mode": "linear" if n % 2 else None,
         "block_length": 4 if n % 2 else None}
        for n in range(7)
    ]  # fmt: skip
    found = answers(pa.Table.from_pylist(rows))
    assert found.column_names == ["id", "source", *RESULTS.names]
    model = load(tiny, dtype="fp32")
    for row, result in zip(rows, found.to_pylist(), strict=True):
        mode = row["mode"] or "ar"
        more = {"block_length": 4} if mode == "linear" else {}
        alone = generate_one(model, row["prompt"], max_tokens=8, ignore_eos=True, mode=mode, **more)
        assert (result["id"], result["source"]) == (row["id"], row["source"])
        assert (result["mode"], result["text"]) == (mode, alone.text)
        assert result["token_ids"] == list(alone.token_ids)
        assert result["nfe"] == alone.stats.nfe


def test_columns_of_results_have_types_that_do_not_depend_on_the_rows(answers, tmp_path):
    assert {*RESULTS.names, "id"} == RESULT_FIELDS
    one = answers(pa.Table.from_pylist([{"id": "a", "prompt": "x"}]))
    other = answers(pa.Table.from_pylist([{"id": "b", "prompt": "x", "mode": "auto"}]))
    assert one.schema == other.schema
    both = pa.concat_tables([one, other])
    assert both.column("plans").to_pylist()[0] is None
    assert dict(both.column("plans").to_pylist()[1])
    pq.write_table(both, tmp_path / "both.parquet")
    assert pq.read_table(tmp_path / "both.parquet").to_pylist() == both.to_pylist()


def test_a_wrong_row_is_named_and_the_next_batch_is_answered(answers):
    rows = [{"id": 1, "prompt": "x"}, {"id": 7, "prompt": "y" * 5000}]
    with pytest.raises(InputError, match="the row with id 7: "):
        answers(pa.Table.from_pylist(rows))
    with pytest.raises(InputError, match="the row with id 8: thresold: no such option"):
        answers(pa.Table.from_pylist([{"id": 8, "prompt": "x", "thresold": 1.0}]))
    assert len(answers(pa.Table.from_pylist(rows[:1]))) == 1


def test_a_wrong_option_is_refused():
    with pytest.raises(InputError, match="mode"):
        Generate(mode="fast")
    with pytest.raises(InputError, match="sequences"):
        Generate(sequences=0)
    with pytest.raises(TypeError, match="max_token'"):
        Generate(max_token=4)


def batch(cluster, source, output, tiny, *more):
    """The example as a process."""
    command = [sys.executable, EXAMPLES / "batch.py", source, output, "--model", tiny,
               "--mode", "linear", "--max-tokens", "60", "--num-cpus", "0.5", *more]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), cwd=cluster.folder, env=cluster.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def written(output):
    return [
        json.loads(line) for path in output.glob("*.json") for line in path.read_text().splitlines()
    ]


def test_a_run_that_is_killed_goes_on_and_every_id_is_there_once(cluster, tiny, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out"
    rows = [{"id": n, "prompt": f"p{n}", "ignore_eos": True} for n in range(240)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = batch(cluster, source, output, tiny, "--batch-size", 8)
    while len(written(output)) < len(rows) // 3:
        assert run.poll() is None, run.communicate()[0][-3000:]
        time.sleep(0.02)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    before = {row["id"]: row for row in written(output)}
    assert len(rows) // 3 <= len(before) < len(rows)
    again = batch(cluster, source, output, tiny, "--batch-size", 8)
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said[-3000:]
    after = written(output)
    assert sorted(row["id"] for row in after) == list(range(len(rows)))
    kept = [row for row in after if before.get(row["id"]) == row]
    assert len(kept) > len(rows) // 4  # what was done was not computed again
    third = batch(cluster, source, output, tiny, "--batch-size", 8)
    assert third.wait(300) == 0
    assert len(written(output)) == len(rows)


def test_actors_that_would_take_every_core_are_refused(cluster, tiny, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"id": 1, "prompt": "x"}\n')
    run = batch(cluster, source, tmp_path / "out", tiny, "--actors", 6)
    said = run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert "actors: 6 of 0.5 CPUs each, and the cluster has 4; leave 2" in said
    assert callable(generate)
