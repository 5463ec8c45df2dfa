"""`trimode train-head`, and the draft head that `convert` adds."""

import json
import random
from dataclasses import replace

import pytest

from tests.cli.conftest import assert_one_line_error
from trimode import load
from trimode.checkpoints import markov_head
from trimode.checkpoints.draft_head import FILE


def rows(path, count, answer="say"):
    """A file as `convert` writes it: one letter decides the next."""
    draw = random.Random(0)
    following = dict(zip("abcdefgh", "bcdefgha", strict=True))

    def text():
        letters = draw.choice("abcdefgh")
        while len(letters) < 60:
            letters += following[letters[-1]]
        return letters

    lines = [
        {"id": i, "messages": [
            {"role": "user", "content": f"{answer} {i}"},
            {"role": "assistant", "content": text()},
        ], "finish_reason": "stop"}
        for i in range(count)
    ]  # fmt: skip
    lines.append({"id": count, "skipped": "empty answer"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def saved_adapter(folder, letters, form):
    from trimode.checkpoints import save_adapter
    from trimode.training.adapter import AdapterConfig, new_adapter

    model = load(letters, dtype="fp32")
    made = new_adapter(
        model.config, AdapterConfig(rank=2), model.transformer.embedding.matrix()[0], 0
    )
    save_adapter(folder, replace(made, draft_form=form), model.config)
    return folder


@pytest.fixture
def adapter(tmp_path, letters):
    return saved_adapter(tmp_path / "adapter", letters, "led")


def test_a_head_is_trained_and_used(cli, letters, adapter, tmp_path):
    data = rows(tmp_path / "own.jsonl", 60)
    arguments = ("--data", data, "-o", adapter, "--epochs", 8, "--inner", 32, "--words", 64)
    outcome = cli("train-head", letters, *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.out.split() == [str(adapter / FILE), str(adapter / markov_head.FILE)]
    assert "of its guesses 1, 2, ... tokens ahead are right" in outcome.err
    assert "of drafted tokens are right after a right one" in outcome.err
    made = load(letters, adapter=adapter)
    assert made.draft_head is not None
    assert made.markov_head is not None
    asked = ("generate", letters, "hi", "--max-tokens", 40, "-q")
    for mode in ("auto", "linear", "quadratic"):
        assert cli(*asked, "--adapter", adapter, "--mode", mode).out == cli(*asked).out


def test_a_head_goes_on_from_another(cli, letters, adapter, tmp_path):
    data = rows(tmp_path / "own.jsonl", 60)
    asked = ("train-head", letters, "--data", data, "-o", adapter, "--only", "draft")
    assert cli(*asked, "--epochs", 8, "--inner", 32, "--words", 64).code == 0
    sizes = load(letters, adapter=adapter).draft_head._parts
    more = cli(*asked, "--epochs", 0.1, "--start-from", adapter)
    assert more.code == 0, more.err
    found = load(letters, adapter=adapter).draft_head._parts
    assert (found.inner, found.state_scale) == (32, sizes.state_scale)


def test_what_a_head_goes_on_from_is_checked_first(cli, letters, adapter, tmp_path):
    data, write = tmp_path / "own.jsonl", ("--conversations", 5)
    asked = ("train-head", letters, "--data", data, "-o", adapter, "--start-from", adapter, *write)
    assert_one_line_error(cli(*asked), 2, "start_from", FILE)
    assert_one_line_error(cli(*asked, "--inner", 64), 2, "start_from", "--inner")
    assert_one_line_error(cli(*asked, "--only", "markov"), 2, "start_from", "--only markov")
    (adapter / FILE).write_bytes(b"no head")
    assert_one_line_error(cli(*asked), 2, FILE, "not readable")
    assert not data.exists()


@pytest.mark.parametrize(("only", "file"), [("draft", FILE), ("markov", markov_head.FILE)])
def test_one_head_alone(cli, letters, adapter, tmp_path, only, file):
    data = rows(tmp_path / "own.jsonl", 40)
    arguments = ("--data", data, "-o", adapter, "--epochs", 1, "--inner", 32, "--words", 64)
    outcome = cli("train-head", letters, *arguments, "--only", only)
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == str(adapter / file)
    assert [path.name for path in adapter.glob("*_head.*")] == [file]


def test_a_markov_head_is_for_the_led_form(cli, letters, tmp_path):
    seeded = saved_adapter(tmp_path / "seeded", letters, "seeded")
    data = rows(tmp_path / "own.jsonl", 40)
    asked = ("train-head", letters, "--data", data, "-o", seeded, "--epochs", 1, "--inner", 32)
    wrong = cli(*asked, "--only", "markov")
    assert_one_line_error(wrong, 2, "output:", "seeded", "led form")
    assert_one_line_error(cli(*asked, "--only", "both"), 2, "only: both", "draft or markov")
    assert not list(seeded.glob("*_head.*"))
    assert cli(*asked, "--words", 64).out.strip() == str(seeded / FILE)


def test_the_model_writes_its_own_data(cli, letters, adapter, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"say {i}\n" for i in range(20)))
    data = tmp_path / "own.jsonl"
    asked = (
        *("train-head", letters, "--data", data, "-o", adapter, "--conversations", 20),
        *("--prompts", prompts, "--sampled-share", 0, "--answer-tokens", 60),
        *("--epochs", 1, "--inner", 32, "--words", 64),
    )
    outcome = cli(*asked)
    assert outcome.code == 0, outcome.err
    written = data.read_text()
    assert written.count("\n") == 20
    assert cli(*asked).code == 0
    assert data.read_text() == written, "nothing is written twice"


def test_what_is_wrong_is_said_before_anything_is_written(cli, letters, adapter, tmp_path):
    few = rows(tmp_path / "few.jsonl", 3)
    asked = ("train-head", letters, "-o", adapter)
    assert_one_line_error(cli(*asked, "--data", few), 2, "data:", "at least 1000")
    assert_one_line_error(
        cli(*asked, "--data", few, "--inner", 30), 2, "inner: 30", "multiple of 16"
    )
    assert_one_line_error(cli(*asked, "--data", tmp_path / "none"), 2, "data")
    outcome = cli("train-head", letters, "-o", tmp_path / "no", "--data", few)
    assert_one_line_error(outcome, 2, "output:", "directory of an adapter")
    few.write_text('{"prompt": "a"}\n')
    assert_one_line_error(cli(*asked, "--data", few), 2, "line 1", "has no answer")
    assert not (adapter / FILE).exists()
