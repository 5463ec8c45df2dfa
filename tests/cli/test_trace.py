"""`trimode generate --trace`."""

import json


def test_a_trace_holds_the_answer_and_every_draft(cli, nld, tmp_path):
    path = tmp_path / "run.jsonl"
    outcome = cli(
        "generate", nld, "hi", "--mode", "linear", "--max-tokens", 12, "--json", "--trace", path
    )
    answer = outcome.json()
    chunks = [json.loads(line) for line in path.read_text().splitlines()]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    texts = [c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]]
    assert "".join(texts) == answer["text"]
    frames = [c["trimode"] for c in chunks if "trimode" in c]
    assert [f["seq"] for f in frames] == list(range(len(frames)))
    assert {"draft", "commit"} == {f["type"] for f in frames}
    assert sum(f["length"] for f in frames if f["type"] == "commit") == 12
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    times = [c["trimode_ms"] for c in chunks]
    assert times == sorted(times)


def test_a_traced_answer_is_shown_as_ever(cli, nld, tmp_path):
    path = tmp_path / "run.jsonl"
    plain = cli("generate", nld, "hi", "--max-tokens", 6)
    assert cli("generate", nld, "hi", "--max-tokens", 6, "--trace", path).out == plain.out


def test_a_trace_that_cannot_be_written_is_named(cli, nld, tmp_path):
    outcome = cli("generate", nld, "hi", "--trace", tmp_path / "none" / "run.jsonl")
    assert outcome.code == 2
    assert "trace" in outcome.err


def test_a_trace_of_a_batch_is_refused(cli, nld, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    arguments = ("--input", tmp_path / "in.jsonl", "--trace", tmp_path / "run.jsonl")
    assert cli("generate", nld, *arguments).code == 2
    assert not (tmp_path / "run.jsonl").exists()
