"""Data sets of benchmarks: fetched whole or not at all, and named when they are missing."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import fetch_data
from benchmarks.lib import data
from benchmarks.lib.prompts import prompt_sets

ROOT = Path(__file__).parents[2]


@pytest.fixture
def published(monkeypatch):
    """One small data set, and what its address answers."""
    content = b'{"question": "1 + 1?"}\n'
    file = data.DataFile("a.jsonl", "x/a.jsonl", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fetch_data, "SOURCES", {"a": data.Source("o/r", "c", "MIT", (file,))})
    asked, answers = [], [content]

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(answers[0])

    monkeypatch.setattr(fetch_data.urllib.request, "urlopen", answer)
    return asked, answers


def test_what_is_right_is_fetched_once(published, tmp_path):
    asked, answers = published
    fetch_data.fetch(tmp_path)
    fetch_data.fetch(tmp_path)
    assert (tmp_path / "a" / "a.jsonl").read_bytes() == answers[0]
    assert asked == ["https://raw.githubusercontent.com/o/r/c/x/a.jsonl"]


def test_another_file_is_refused_and_leaves_nothing(published, tmp_path):
    _, answers = published
    answers[0] = b'{"question": "1 + 2?"}\n'
    with pytest.raises(SystemExit, match="not the file"):
        fetch_data.fetch(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_prompt_set_is_in_the_table(tmp_path):
    known = {
        f"{name}/{file.name}" for name, source in data.SOURCES.items() for file in source.files
    }
    for name in known:
        (tmp_path / name).parent.mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as refused:
        prompt_sets(tmp_path, 2)
    assert "self_instruct/user_oriented_instructions.jsonl" in known
    assert f"fetch_data.py {tmp_path}" in str(refused.value)


SCRIPTS = [
    ("benchmarks/quality/lossless.py", "--dtype", "fp32"),
    ("reproduce/smollm2/prompts.py", "--output", "/dev/null"),
]


@pytest.mark.parametrize("command", SCRIPTS, ids=lambda command: Path(command[0]).stem)
def test_a_missing_file_is_one_line_that_names_the_command(command, tmp_path):
    done = subprocess.run(
        [sys.executable, *command, "--data", tmp_path], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert f"fetch_data.py {tmp_path}" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_no_page_for_users_names_a_folder_that_they_do_not_have():
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/models").glob("*.md"),
    ]
    for page in [*pages, ROOT / "Makefile", *(ROOT / "benchmarks").rglob("*.py")]:
        assert "../shared" not in page.read_text(encoding="utf-8"), page.name
