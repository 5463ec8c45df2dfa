"""`generate --input`: a file of prompts, many at a time, resumable.

With --output, each finished result is appended to a journal, OUTPUT.partial. The output itself
appears whole, in input order, when the last prompt is done; then the journal is removed. A run that
was killed leaves the journal, and the same command continues from it.
"""

import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from trimode.cli import options as opt
from trimode.config import GenerationOptions
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.engine import Engine, Sequence

ALIASES = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "temp": "temperature",
    "block_size": "block_length",
    "canvas_length": "block_length",
    "confidence_threshold": "threshold",
    "steps": "max_denoising_steps",
}
"""Names other programs use for our options."""


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of the input file."""

    number: int
    prompt: str | list[dict[str, Any]]
    options: GenerationOptions
    id: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """A file of prompts, and how it is worked through."""

    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="JSONL: prompt or messages, optional id and options a line."),
    ] = None
    output_file: Annotated[
        Path | None, typer.Option("--output", help="JSONL of results; resumes if interrupted.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False
    concurrency: Annotated[int, typer.Option("--concurrency", help="Prompts at a time.")] = 8


def run_batch(
    batch: BatchOptions,
    model: opt.ModelOptions,
    prompt: opt.PromptOptions,
    defaults: GenerationOptions,
    *,
    progress: bool,
) -> None:
    """Run `--input`; every line is checked before any work starts.

    Raises:
        InputError: a line is wrong, or the output belongs to something else.
    """
    if batch.concurrency < 1:
        raise InputError("concurrency", str(batch.concurrency), "must be at least 1")
    assert batch.input_file is not None
    source = opt.existing_file(batch.input_file, "input")
    lines = read_lines(source, defaults)
    journal, done = None, set()
    if batch.output_file is not None:
        if batch.output_file.exists() and batch.output_file.samefile(source):
            raise InputError("output", f"{batch.output_file} is the input", "must be another file")
        journal = Journal(batch.output_file, _fingerprint(model, prompt, source, defaults))
        done = journal.open(overwrite=batch.overwrite)
    todo = [line for line in lines if line.number not in done]
    loaded = opt.load_model(model, progress=progress)
    from trimode.engine import Engine

    engine = Engine(loaded, max_sequences=batch.concurrency)
    line_of = _queue(engine, prompt, source, todo)
    if journal is None:
        _run(engine, line_of, _ordered_stdout(lines), progress=progress)
        return
    with journal.path.open("a", encoding="utf-8") as file:
        journal.begin(file)
        _run(engine, line_of, lambda line, row: journal.append(file, line, row), progress=progress)
    journal.finish([line.number for line in lines])


def read_lines(path: Path, defaults: GenerationOptions) -> list[Line]:
    """Parse and check a JSONL file of prompts.

    Raises:
        InputError: names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(str(path), f"byte {error.start} is not UTF-8", "must be UTF-8") from None
    except OSError as error:
        raise InputError(str(path), f"not readable ({error})", "must be a JSONL file") from None
    lines = [
        _parse(raw, number, f"{path} line {number}", defaults)
        for number, raw in enumerate(text.split("\n"), 1)
        if raw.strip()
    ]
    if not lines:
        raise InputError(str(path), "no prompts", "needs one JSON object a line")
    return lines


def _parse(raw: str, number: int, where: str, defaults: GenerationOptions) -> Line:
    try:
        row: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(where, f"not JSON ({error})", "must be one object a line") from None
    if not isinstance(row, dict):
        raise InputError(where, type(row).__name__, "must be a JSON object")
    prompt, messages, name = row.pop("prompt", None), row.pop("messages", None), row.pop("id", None)
    if (prompt is None) == (messages is None):
        found = "neither prompt nor messages" if prompt is None else "prompt and messages"
        raise InputError(where, found, "needs one of them")
    if messages is None and not (isinstance(prompt, str) and prompt):
        raise InputError(f"{where}: prompt", repr(prompt), "must be a string, not empty")
    if messages is not None and not (isinstance(messages, list) and messages):
        raise InputError(f"{where}: messages", repr(messages), "must be a list, not empty")
    for i, message in enumerate(messages or ()):
        if not isinstance(message, dict):
            found = type(message).__name__
            raise InputError(f"{where}: messages[{i}]", found, "must be an object")
    try:
        values = {str(ALIASES.get(key, key)): value for key, value in row.items()}
        if "mode" in values:
            defaults = _for_mode(defaults, values.pop("mode"))
        options = defaults.updated(values)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.found, error.allowed) from None
    return Line(number, prompt if messages is None else messages, options, name)


def _for_mode(defaults: GenerationOptions, mode: object) -> GenerationOptions:
    """The command's options for a line that gives its own mode: those that this mode reads."""
    from trimode.decoding import inherited

    options = defaults.updated({"mode": mode})
    return inherited(options, options.mode)


def _queue(
    engine: "Engine", prompt: opt.PromptOptions, source: Path, lines: list[Line]
) -> dict["Sequence", Line]:
    """Queue every line, so that none can fail once work has started."""
    line_of = {}
    for line in lines:
        try:
            ids = prompt.encoded(engine.model, line.prompt)
            line_of[engine.add(ids, line.options)] = line
        except InputError as error:
            where = f"{source} line {line.number}: {error.field}"
            raise InputError(where, error.found, error.allowed) from None
    return line_of


def _run(
    engine: "Engine",
    line_of: dict["Sequence", Line],
    emit: Callable[[Line, dict[str, Any]], None],
    *,
    progress: bool,
) -> None:
    """Decode everything, handing over each result as it is finished."""
    from rich.console import Console
    from rich.progress import Progress

    from trimode.engine import GenerationResult, drain

    console = Console(stderr=True)
    with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(f"{len(line_of)} prompts", total=len(line_of))
        for update in drain(engine):
            if update.sequence.finish_reason is None:
                continue
            line = line_of[update.sequence]
            result = GenerationResult.of(update.sequence, engine.model.name).to_json()
            emit(line, result if line.id is None else {"id": line.id, **result})
            bar.advance(task)


def _ordered_stdout(lines: list[Line]) -> Callable[[Line, dict[str, Any]], None]:
    """Print results in input order, each as soon as all before it are there."""
    order = deque(line.number for line in lines)
    waiting: dict[int, dict[str, Any]] = {}

    def emit(line: Line, row: dict[str, Any]) -> None:
        waiting[line.number] = row
        while order and order[0] in waiting:
            sys.stdout.write(json.dumps(waiting.pop(order.popleft())) + "\n")
            sys.stdout.flush()

    return emit


def _fingerprint(
    model: opt.ModelOptions, prompt: opt.PromptOptions, source: Path, defaults: GenerationOptions
) -> str:
    """What the results depend on."""
    loaded = {"model": model.model, "dtype": model.dtype, "adapter": model.adapter}
    digest = hashlib.sha256(source.read_bytes())
    asked = loaded | asdict(prompt) | asdict(defaults)
    digest.update(json.dumps(asked, sort_keys=True).encode())
    return digest.hexdigest()


class Journal:
    """Finished results of an unfinished run, one a line, after a header."""

    def __init__(self, output: Path, fingerprint: str) -> None:
        self.output, self.fingerprint = output, fingerprint
        self.path = output.with_name(output.name + ".partial")
        self._intact = 0

    def open(self, *, overwrite: bool) -> set[int]:
        """Line numbers that are done already.

        Raises:
            InputError: the output exists, or the journal is of another run.
        """
        if self.output.is_dir():
            raise InputError("output", f"{self.output} is a directory", "must be a file")
        if not self.output.parent.is_dir():
            raise InputError("output", f"no directory {self.output.parent}", "create it first")
        if overwrite:  # nothing is lost before the new output is whole
            return set()
        if self.output.exists():
            raise InputError("output", f"{self.output} exists", "remove it or pass --overwrite")
        rows = self._rows()
        if not rows and self.path.exists() and not self._header().startswith(self._content()):
            raise InputError("output", f"{self.path} is no journal", "move it away")
        if rows and rows[0].get("fingerprint") != self.fingerprint:
            found = f"{self.path} was left by another input or other options"
            raise InputError("output", found, "remove it or pass --overwrite")
        return {row["line"] for row in rows[1:]}

    def _header(self) -> bytes:
        return (json.dumps({"fingerprint": self.fingerprint}) + "\n").encode()

    def _content(self) -> bytes:
        return self.path.read_bytes()

    def begin(self, file: TextIO) -> None:
        """Cut off a torn last line; write the header of a new journal."""
        os.truncate(file.fileno(), self._intact)
        if self._intact == 0:
            file.write(self._header().decode())
            file.flush()

    def append(self, file: TextIO, line: Line, row: dict[str, Any]) -> None:
        """Record a finished result."""
        self._write(file, {"line": line.number, "result": row})

    def finish(self, order: list[int]) -> None:
        """Write the output, whole and in input order, and remove the journal."""
        results = {row["line"]: row["result"] for row in self._rows()[1:]}
        temporary = self.path.with_name(self.path.name + ".new")
        with temporary.open("w", encoding="utf-8") as file:
            for number in order:
                file.write(json.dumps(results[number]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.output)
        self.path.unlink()

    def _write(self, file: TextIO, row: dict[str, Any]) -> None:
        file.write(json.dumps(row) + "\n")
        file.flush()

    def _rows(self) -> list[dict[str, Any]]:
        """Rows up to the first torn one; remembers the end of the intact part."""
        rows, self._intact = [], 0
        if not self.path.exists():
            return rows
        for raw in self.path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(raw) if raw.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                break
            rows.append(row)
            self._intact += len(raw)
        return rows
