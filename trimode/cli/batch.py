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
from typing import TYPE_CHECKING, Any, TextIO

from trimode.cli import options as opt
from trimode.config import GenerationOptions
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
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


def run_batch(parameters: dict[str, Any], model: str, options: GenerationOptions) -> None:
    """Run `--input`; every line is checked before any work starts.

    Raises:
        InputError: a line is wrong, or the output belongs to something else.
    """
    if parameters["concurrency"] < 1:
        raise InputError("concurrency", str(parameters["concurrency"]), "must be at least 1")
    source = opt.existing_file(parameters["input_file"], "input")
    lines = read_lines(source, options)
    output: Path | None = parameters["output_file"]
    if output is None:
        engine, sequences = _queue(parameters, model, source, lines)
        _run(engine, sequences, lines, _ordered_stdout(lines), parameters)
        return
    if output.exists() and output.samefile(source):
        raise InputError("output", f"{output} is the input", "must be another file")
    journal = Journal(output, _fingerprint(parameters, model, source, options))
    done = journal.open(overwrite=parameters["overwrite"])
    todo = [line for line in lines if line.number not in done]
    engine, sequences = _queue(parameters, model, source, todo)
    with journal.path.open("a", encoding="utf-8") as file:
        journal.begin(file)
        _run(engine, sequences, todo, lambda line, row: journal.append(file, line, row), parameters)
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
        options = defaults.updated(values)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.found, error.allowed) from None
    return Line(number, prompt if messages is None else messages, options, name)


def _queue(
    parameters: dict[str, Any], model: str, source: Path, lines: list[Line]
) -> tuple["Engine", list["Sequence"]]:
    """Load the model and queue every line, so that none can fail once work has started."""
    loaded: LoadedModel = opt.load_model(parameters, model)
    from trimode.engine import Engine, encode_prompt

    engine = Engine(loaded, max_sequences=parameters["concurrency"])
    sequences = []
    for line in lines:
        prompt = line.prompt
        if isinstance(prompt, str):
            prompt = opt.as_messages(prompt, parameters["system"])
        try:
            ids = encode_prompt(
                loaded,
                prompt,
                raw=parameters["raw"],
                enable_thinking=parameters["enable_thinking"],
            )
            sequences.append(engine.add(ids, line.options))
        except InputError as error:
            where = f"{source} line {line.number}: {error.field}"
            raise InputError(where, error.found, error.allowed) from None
    return engine, sequences


def _run(
    engine: "Engine",
    sequences: list["Sequence"],
    lines: list[Line],
    emit: Callable[[Line, dict[str, Any]], None],
    parameters: dict[str, Any],
) -> None:
    """Decode everything, handing over each result as it is finished."""
    from rich.console import Console
    from rich.progress import Progress

    from trimode.engine import GenerationResult, drain

    line_of = dict(zip(sequences, lines, strict=True))
    console = Console(stderr=True)
    shown = console.is_terminal and not parameters["no_progress"]
    with Progress(console=console, disable=not shown) as progress:
        task = progress.add_task(f"{len(lines)} prompts", total=len(lines))
        for update in drain(engine):
            if update.sequence.finish_reason is None:
                continue
            line = line_of[update.sequence]
            result = GenerationResult.of(update.sequence, engine.model.name).to_json()
            emit(line, result if line.id is None else {"id": line.id, **result})
            progress.advance(task)


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
    parameters: dict[str, Any], model: str, source: Path, options: GenerationOptions
) -> str:
    """What the results depend on."""
    names = ("system", "raw", "enable_thinking", "dtype", "adapter")
    asked = {name: parameters[name] for name in names} | {"model": model} | asdict(options)
    digest = hashlib.sha256(source.read_bytes())
    digest.update(json.dumps(asked, sort_keys=True).encode())
    return digest.hexdigest()


class Journal:
    """Finished results of an unfinished run, one a line behind a header."""

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
        """Rows up to the first torn one; remembers where the intact part ends."""
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
