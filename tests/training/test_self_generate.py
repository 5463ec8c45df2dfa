"""Conversations that a model writes itself."""

import json

import pytest
from filelock import FileLock

from trimode import generate
from trimode.errors import InputError
from trimode.shard import Shard
from trimode.testing.tiny import tiny_model
from trimode.training.self_generate import (
    Prompt,
    SelfGenerationConfig,
    read_prompt_rows,
    read_prompts,
    self_generate,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def rows(path):
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


def config(**fields):
    return SelfGenerationConfig(
        **{"conversations": 8, "answer_max_tokens": 12, "user_max_tokens": 8, "concurrency": 3}
        | fields
    )


PROMPTS = [Prompt(f"question {i}") for i in range(20)]


def test_answers_are_the_models_greedy_ones(model, tmp_path):
    path = tmp_path / "a.jsonl"
    self_generate(model, config(sampled_share=0), path, prompts=PROMPTS, progress=False)
    found = rows(path)
    assert sorted(found) == list(range(8))
    kept = [row for row in found.values() if "messages" in row]
    assert kept
    for row in kept:
        user, assistant = row["messages"]
        assert user["content"] == PROMPTS[row["id"]].text
        assert assistant["content"] == generate(model, user["content"], max_tokens=12).text
        assert row["finish_reason"] in ("stop", "length")


def test_a_run_that_was_killed_is_continued(model, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    self_generate(model, config(), whole, prompts=PROMPTS, progress=False)
    self_generate(model, config(conversations=4), cut, prompts=PROMPTS, progress=False)
    with cut.open("a") as file:
        file.write('{"id": 4, "mess')
    self_generate(model, config(), cut, prompts=PROMPTS, progress=False)
    assert rows(cut) == rows(whole)


def test_concurrency_changes_nothing(model, tmp_path):
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    self_generate(model, config(concurrency=1), one, prompts=PROMPTS[:3], progress=False)
    self_generate(model, config(concurrency=8), many, prompts=PROMPTS[:3], progress=False)
    assert rows(one) == rows(many)


def test_without_prompts_every_user_turn_is_sampled(model, tmp_path):
    path = tmp_path / "a.jsonl"
    self_generate(model, config(), path, progress=False)
    assert len(rows(path)) == 8


def test_a_file_of_something_else_is_refused(model, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "mine"}\n')
    with pytest.raises(InputError, match="line 1: has no id"):
        self_generate(model, config(), path, progress=False)
    assert path.read_text() == '{"text": "mine"}\n'


def test_prompts_are_checked_by_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(InputError, match="line 2: prompt"):
        read_prompts(path)


def test_a_run_without_usable_conversations_ends_early_and_says_why(model, tmp_path):
    path = tmp_path / "a.jsonl"
    asked = config(conversations=500, user_max_tokens=1)
    with pytest.raises(InputError, match=r"of 3\d conversations of tiny-llama unusable: .*without"):
        self_generate(model, asked, path, progress=False)
    written = len(rows(path))
    assert written < 40
    with pytest.raises(InputError, match="to begin again"):  # at once, the second time
        self_generate(model, asked, path, progress=False)
    assert len(rows(path)) == written


def test_other_columns_of_a_prompt_are_kept(model, tmp_path):
    source = tmp_path / "p.csv"
    source.write_text('key,prompt\nx,"one, two"\ny,three\n')
    path = tmp_path / "a.jsonl"
    asked = config(conversations=2, sampled_share=0)
    self_generate(model, asked, path, prompts=read_prompt_rows(source), progress=False)
    kept = [row for row in rows(path).values() if "messages" in row]
    assert kept
    for row in kept:
        expected = {"one, two": {"key": "x"}, "three": {"key": "y"}}
        assert row["prompt_row"] == expected[row["messages"][0]["content"]]


@pytest.mark.parametrize("fields", [{"conversations": 0}, {"sampled_share": 2}, {"concurrency": 0}])
def test_a_value_out_of_range_is_named(fields):
    with pytest.raises(InputError, match=next(iter(fields))):
        config(**fields)


@pytest.mark.parametrize("count", [1, 2, 3, 11])
def test_shards_together_are_what_one_process_writes(model, tmp_path, count):
    whole = tmp_path / "whole.jsonl"
    self_generate(model, config(), whole, prompts=PROMPTS[:4], progress=False)
    joined = tmp_path / "joined.jsonl"
    for i in range(count):
        part = tmp_path / f"{i}.jsonl"
        asked = config(shard=Shard(i, count))
        self_generate(model, asked, part, prompts=PROMPTS[:4], progress=False)
        assert sorted(rows(part)) == list(range(8))[i::count]
        with joined.open("a") as file:
            file.write(part.read_text())
    assert rows(joined) == rows(whole)
    assert joined.read_text().count("\n") == 8
    before = joined.read_bytes()
    self_generate(model, config(), joined, prompts=PROMPTS[:4], progress=False)
    assert joined.read_bytes() == before


def test_a_shard_that_was_joined_twice_is_refused(model, tmp_path):
    path = tmp_path / "a.jsonl"
    self_generate(model, config(conversations=3), path, prompts=PROMPTS, progress=False)
    path.write_text(path.read_text() * 2)
    with pytest.raises(InputError, match=r"a\.jsonl line 4: id: \d once more"):
        self_generate(model, config(), path, prompts=PROMPTS, progress=False)


def test_two_processes_do_not_write_the_same_file(model, tmp_path):
    path = tmp_path / "a.jsonl"
    with (
        FileLock(tmp_path / ".a.jsonl.lock"),
        pytest.raises(InputError, match=r"being written by another process; .*--shard"),
    ):
        self_generate(model, config(), path, prompts=PROMPTS, progress=False)
    assert not path.exists()
    self_generate(model, config(), path, prompts=PROMPTS, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
