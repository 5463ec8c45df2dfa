"""`generate --input`: a file of prompts, many at a time, resumable.

With --output, each finished result is appended to a journal, OUTPUT.partial. The output itself
appears whole, in input order, when the last prompt is done; then the journal is removed. A run that
was killed leaves the journal, and the same command continues from it.
"""

import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from trimode.cli import options as opt
from trimode.cli.render import note
from trimode.cli.signals import Terminated, interrupted_once
from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.journal import changes, intact_rows, locked
from trimode.rows import content_digest
from trimode.shard import Shard
from trimode.workload import Columns, Line, read_lines

if TYPE_CHECKING:
    from trimode.engine import Engine, Sequence

PromptColumn = Annotated[
    str | None,
    typer.Option("--prompt-column", help="The column of prompts, if it has no usual name."),
]
Split = Annotated[
    str | None, typer.Option("--split", help="The part of a data set's directory: train, test.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """A file of prompts, and how it is worked through."""

    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="JSONL, CSV, Parquet or OpenAI batch: a prompt or messages a row, and options.",
        ),
    ] = None
    prompt_column: PromptColumn = None
    split: Split = None
    output_file: Annotated[
        Path | None, typer.Option("--output", help="JSONL of results; resumes if interrupted.")
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --output.")] = False
    concurrency: Annotated[int, typer.Option("--concurrency", help="Prompts at a time.")] = 8
    shard: Annotated[
        str | None,
        typer.Option("--shard", help="I/N: rows I, I+N, I+2N, ... of --input only, I from 0."),
    ] = None


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
    with interrupted_once():
        _run_batch(batch, model, prompt, defaults, progress=progress)


def _run_batch(
    batch: BatchOptions,
    model: opt.ModelOptions,
    prompt: opt.PromptOptions,
    defaults: GenerationOptions,
    *,
    progress: bool,
) -> None:
    assert batch.input_file is not None
    source = existing_rows(batch.input_file, "input")
    shard = None if batch.shard is None else Shard.parse(batch.shard)
    lines = _lines(batch, source, defaults)
    lines = lines if shard is None else list(shard.of(lines))

    def where(line: Line) -> str:
        return f"{source} line {line.number}"

    if batch.output_file is None:
        engine = _engine(batch, model, lines, progress=progress)
        line_of = queue_all(engine, prompt, lines, where)
        totals = _run(
            engine, line_of, _ordered_stdout(lines), can_continue=False, progress=progress
        )
        _say(totals, progress)
        return
    if batch.output_file.exists() and batch.output_file.samefile(source):
        raise InputError("output", f"{batch.output_file} is the input", "must be another file")
    made_with = {"shard": None if shard is None else str(shard)}
    made_with |= _made_with(model, prompt, source, defaults)
    journal = Journal(batch.output_file, made_with)
    with journal.locked():
        done = journal.open(overwrite=batch.overwrite)
        todo = [line for line in lines if line.number not in done]
        engine = _engine(batch, model, todo, progress=progress)
        line_of = queue_all(engine, prompt, todo, where)
        with named_errors(journal.path), journal.path.open("a", encoding="utf-8") as file:
            journal.begin(file)

            def emit(line: Line, row: dict[str, Any]) -> None:
                journal.append(file, line, row)

            totals = _run(
                engine, line_of, emit, before=len(done), can_continue=True, progress=progress
            )
        journal.finish([line.number for line in lines])
    _say(totals, progress)


def existing_rows(path: Path, field: str) -> Path:
    """The path, if it is a readable file or a directory.

    Raises:
        InputError: it is not.
    """
    return path if path.is_dir() else opt.existing_file(path, field)


def _lines(batch: BatchOptions, source: Path, defaults: GenerationOptions) -> list[Line]:
    columns = Columns(prompt=batch.prompt_column, split=batch.split)
    return read_lines(source, defaults, columns=columns, is_taken=is_taken, say=note)


def is_taken(name: str) -> bool:
    """Whether a result has a field of this name."""
    from trimode.engine.result import RESULT_FIELDS

    return name in RESULT_FIELDS


def _say(totals: str, progress: bool) -> None:
    if totals and progress:
        sys.stderr.write(f"{totals}\n")


def _engine(
    batch: BatchOptions, model: opt.ModelOptions, lines: list[Line], *, progress: bool
) -> "Engine":
    """The engine, with the model; a mode that it cannot run is refused before it is loaded."""
    asked = {line.options.mode: line.options for line in lines}
    loaded = opt.load_model(model, progress=progress, asked=asked.values())
    from trimode.engine import Engine

    return Engine(loaded, max_sequences=batch.concurrency)


def queue_all(
    engine: "Engine",
    prompt: opt.PromptOptions,
    lines: list[Line],
    where: Callable[[Line], str],
) -> dict["Sequence", Line]:
    """Queue every line, so that none can fail once work has started.

    Raises:
        InputError: the engine refuses a line; named by `where`.
    """
    line_of = {}
    for line in lines:
        try:
            asked = replace(prompt, raw=True, system=None) if line.raw else prompt
            read = asked.encoded(engine.model, line.prompt, line.images)
            line_of[engine.add(read.tokens, line.options, images=read.images)] = line
        except InputError as error:
            field = f"{where(line)}: {error.field}"
            raise InputError(field, error.found, error.allowed) from None
    return line_of


def _run(
    engine: "Engine",
    line_of: dict["Sequence", Line],
    emit: Callable[[Line, dict[str, Any]], None],
    *,
    before: int = 0,
    can_continue: bool,
    progress: bool,
) -> str:
    """Decode everything, handing over each result as it is finished.

    Args:
        engine: with all lines queued.
        line_of: the line of each sequence.
        emit: takes each result.
        before: results that an earlier run has made.
        can_continue: whether the same command continues this run if it is interrupted.
        progress: whether to show a bar.

    Returns:
        The totals in one line; empty if there was nothing to do.
    """
    from rich.console import Console
    from rich.progress import Progress

    from trimode.engine import GenerationResult, drain

    console = Console(stderr=True)
    began = time.monotonic()
    done: list[Sequence] = []
    try:
        with Progress(console=console, disable=not (progress and console.is_terminal)) as bar:
            total = len(line_of) + before
            task = bar.add_task(f"{total} prompts", total=total, completed=before)
            for update in drain(engine):
                if update.sequence.finish_reason is None:
                    continue
                line = line_of[update.sequence]
                result = GenerationResult.of(update.sequence, engine.model.name).to_json()
                emit(line, {**line.columns, **result})
                done.append(update.sequence)
                bar.advance(task)
    except (KeyboardInterrupt, Terminated):
        how = "the same command continues" if can_continue else "with --output it could go on"
        sys.stderr.write(f"stopped: {before + len(done)} of {before + len(line_of)} done; {how}\n")
        raise
    return _totals(done, time.monotonic() - began) if done else ""


def _totals(done: "list[Sequence]", seconds: float) -> str:
    """One line on all sequences of a run together."""
    from trimode.decoding import Stats

    stats = Stats.pooled(sequence.stats for sequence in done)
    tokens, acceptance = stats.completion_tokens, stats.acceptance_length
    ends = Counter(str(sequence.finish_reason) for sequence in done)
    shown = "" if acceptance is None else f", acceptance {acceptance:.2f}"
    return (
        f"{len(done)} prompts: {tokens} tokens in {seconds:.1f} s, "
        f"{tokens / max(seconds, 1e-9):.1f} tokens-per-sec together, NFE {stats.nfe}, "
        f"TPF {stats.tokens_per_forward:.2f}{shown}; "
        + ", ".join(f"{reason} {count}" for reason, count in ends.most_common())
    )


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


def _made_with(
    model: opt.ModelOptions, prompt: opt.PromptOptions, source: Path, defaults: GenerationOptions
) -> dict[str, Any]:
    """What the results depend on, by name."""
    loaded = {"model": model.model, "dtype": model.dtype, "adapter": model.adapter}
    content = {"input": content_digest(source)}
    made_with = content | loaded | asdict(prompt) | asdict(defaults)
    return json.loads(json.dumps(made_with))  # as it is read back


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name the file in errors of the system that do not, such as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"{path}: {error}") from None


class Journal:
    """Finished results of an unfinished run, one a line, after a header."""

    def __init__(self, output: Path, made_with: Mapping[str, Any]) -> None:
        """`made_with`: what the results depend on, by name."""
        self.output, self.made_with = output, made_with
        self.path = output.with_name(output.name + ".partial")
        self._intact = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs away from the output; see `trimode.journal.locked`."""
        if self.output.is_dir():
            raise InputError("output", f"{self.output} is a directory", "must be a file")
        with locked(self.output):
            yield

    def open(self, *, overwrite: bool) -> set[int]:
        """Line numbers that are done already.

        Raises:
            InputError: the output exists, or the journal is of another run.
        """
        if overwrite:  # nothing is lost before the new output is whole
            return set()
        if self.output.exists():
            raise InputError("output", f"{self.output} exists", "remove it or pass --overwrite")
        rows = self._rows()
        if not rows and self.path.exists() and not self._header().startswith(self._content()):
            raise InputError("output", f"{self.path} is no journal", "move it away")
        if rows and (changed := changes(rows[0].get("made_with"), self.made_with)):
            found = f"{self.path} was left by another input or other options ({changed})"
            raise InputError("output", found, "run it as it was, remove it or pass --overwrite")
        lost = self._content().count(b"\n", self._intact) if rows else 0
        if lost > 0:  # a torn last line has no end
            note(f"{self.path}: line {len(rows) + 1} is damaged; {lost} lines are computed again")
        return {row["line"] for row in rows[1:]}

    def _header(self) -> bytes:
        return (json.dumps({"made_with": self.made_with}) + "\n").encode()

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
        with named_errors(temporary), temporary.open("w", encoding="utf-8") as file:
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
        rows, self._intact = intact_rows(self.path)
        return rows
