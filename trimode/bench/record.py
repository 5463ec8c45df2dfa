"""results.jsonl: all that was measured, row by row; a run that was killed goes on from it."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimode.bench.answers import Answer
from trimode.bench.settings import Setting
from trimode.errors import InputError
from trimode.journal import changes, intact_rows

VERSION = 1
RESULTS = "results.jsonl"


class Record:
    """The rows of a run.

    Kinds of rows:

    header       what the results depend on, the machine, the settings
    prompt       a prompt with its columns, and why it was left out if it was
    level        a load, and how many prompts make a group
    answer       one request
    group        the end of a group: its answers are complete
    rung         settings that are measured no more, and why
    slow         a setting that is measured no more after a part of a group, and why
    likelihood   what AR thinks of an answer
    score        what a scorer thinks of it
    gone         a server that answers no more; what it did not answer is measured later
    end          all is measured
    """

    def __init__(self, directory: Path) -> None:
        """Read what an earlier run has left."""
        self.path = directory / RESULTS
        rows, self._intact = intact_rows(self.path)
        complete = _complete(rows)
        if len(complete) < len(rows):  # the torn group at the end is measured again
            text = self.path.read_bytes().splitlines(keepends=True)
            self._intact = sum(len(line) for line in text[: len(complete)])
        self.rows: list[dict[str, Any]] = []
        self._answers: dict[tuple[str, int, int], list[Answer]] = {}
        self._seconds: dict[tuple[str, int, int], float] = {}
        self._take(complete)

    @property
    def finished(self) -> bool:
        """Whether all is measured."""
        return any(row["kind"] == "end" for row in self.rows)

    def check(self, made_with: Mapping[str, Any]) -> None:
        """Check that what is there belongs to this run; nothing may be there.

        Args:
            made_with: what the results depend on, by name.

        Raises:
            InputError: it belongs to another run, or is no result.
        """
        if self.rows:
            changed = changes(self.rows[0].get("made_with"), _as_read(made_with))
            if changed:
                found = f"{self.path} was left by another run ({changed})"
                raise InputError("output", found, "give another directory, or pass --overwrite")
        elif self.path.exists():
            start = self.path.read_bytes()[: len(_START)]
            if not _START.startswith(start):
                raise InputError("output", f"{self.path} is no result", "move it away")

    def begin(self, made_with: Mapping[str, Any], facts: Mapping[str, Any], *, anew: bool) -> bool:
        """Write the header, unless the run goes on; returns whether it does.

        Args:
            made_with: what the results depend on, by name.
            facts: what else the header says.
            anew: whether to drop what is there.

        Raises:
            InputError: see `check`.
        """
        if anew:
            self.rows, self._intact = [], 0
            self._answers, self._seconds = {}, {}
        else:
            self.check(made_with)
        self._cut()
        if self.rows:
            return True
        header = {"kind": "header", "version": VERSION, "made_with": _as_read(made_with), **facts}
        self.append([header])
        return False

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows, all of them at once."""
        new = [dict(row) for row in rows]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in new))
            file.flush()
        self._take(new)

    def _take(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows += rows
        for row in rows:
            if row["kind"] in ("answer", "group"):
                place = (row["setting"], row["round"], row["group"])
            if row["kind"] == "answer":
                self._answers.setdefault(place, []).append(Answer.from_json(row))
            elif row["kind"] == "group":
                self._answers.setdefault(place, [])
                self._seconds[place] = row["seconds"]

    def group(self, setting: Setting, round_: int, group: int) -> list[Answer] | None:
        """The answers of a group; None if it is not measured yet."""
        place = (setting.key, round_, group)
        return self._answers.get(place) if place in self._seconds else None

    def seconds(self, setting: Setting, round_: int, group: int) -> float:
        """How long a group took that is measured."""
        return self._seconds[setting.key, round_, group]

    def of_kind(self, kind: str) -> Iterator[dict[str, Any]]:
        """All rows of a kind."""
        return (row for row in self.rows if row["kind"] == kind)

    def add_group(
        self, setting: Setting, round_: int, group: int, answers: Sequence[Answer], seconds: float
    ) -> None:
        """Write a group's answers and its end."""
        place = {"setting": setting.key, "round": round_, "group": group}
        self.append(
            [
                *({"kind": "answer", **place, **answer.to_json()} for answer in answers),
                {"kind": "group", **place, "seconds": round(seconds, 6)},
            ]
        )

    def _cut(self) -> None:
        """Drop what is damaged or incomplete at the end."""
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("ab") as file:
            os.truncate(file.fileno(), self._intact)


_START = b'{"kind": "header", "version": '


def _as_read(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they are once they were written and read."""
    return json.loads(json.dumps(made_with))


def _complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the answers of a group whose end is missing."""
    if not rows or rows[0].get("kind") != "header" or rows[0].get("version") != VERSION:
        return []
    end = len(rows)
    while end and rows[end - 1].get("kind") == "answer":
        end -= 1
    return rows[:end]


def read_results(directory: Path) -> list[dict[str, Any]]:
    """The rows of a run, to look at.

    Raises:
        InputError: there are none.
    """
    path = directory / RESULTS if directory.is_dir() else directory
    rows = _complete(intact_rows(path)[0])
    if not rows:
        raise InputError(str(path), "no results", "must be the directory of a `trimode bench`")
    return rows
