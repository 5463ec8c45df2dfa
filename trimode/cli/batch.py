"""`generate --input`: a file of prompts, many at a time, resumable.

With --output, each finished result is appended to a journal, OUTPUT.partial. The output itself
appears whole, in input order, when the last prompt is done; then the journal is removed. A run that
was killed leaves the journal, and the same command continues from it.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from trimode.cli import options as opt
from trimode.cli.render import note
from trimode.cli.signals import Terminated, interrupted_once
from trimode.config import GenerationOptions
from trimode.errors import InputError
from trimode.rows import Row, near_miss, parse_json, read_rows
from trimode.shard import Shard

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
_OPTIONS = frozenset(option.name for option in fields(GenerationOptions))
_KNOWN = ("prompt", "messages", *_OPTIONS, *ALIASES)
_ENVELOPE = frozenset(("custom_id", "method", "url", "body"))
_URLS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
"""Endpoints of OpenAI's batch format, and what holds the prompt there."""
_WITHOUT_EFFECT = {
    "user": None,
    "metadata": None,
    "store": None,
    "service_tier": None,
    "stream": False,
    "n": 1,
}
"""Fields of an OpenAI body that change no answer, with the only value allowed, if only one is."""


@dataclass(frozen=True, slots=True)
class Line:
    """One prompt of the input file."""

    number: int
    prompt: str | list[dict[str, Any]]
    options: GenerationOptions
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What the result repeats first: the id, and columns that say nothing to us."""
    raw: bool = False
    """Whether the prompt is text to go on with, whatever the command says."""


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
    source = opt.existing_file(batch.input_file, "input")
    shard = None if batch.shard is None else Shard.parse(batch.shard)
    lines = read_lines(source, defaults)
    lines = lines if shard is None else list(shard.of(lines))
    if batch.output_file is None:
        engine = _engine(batch, model, lines, progress=progress)
        line_of = _queue(engine, prompt, source, lines)
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
        line_of = _queue(engine, prompt, source, todo)
        with named_errors(journal.path), journal.path.open("a", encoding="utf-8") as file:
            journal.begin(file)

            def emit(line: Line, row: dict[str, Any]) -> None:
                journal.append(file, line, row)

            totals = _run(
                engine, line_of, emit, before=len(done), can_continue=True, progress=progress
            )
        journal.finish([line.number for line in lines])
    _say(totals, progress)


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


def read_lines(path: Path, defaults: GenerationOptions) -> list[Line]:
    """Parse and check a file of prompts.

    Raises:
        InputError: names the file and the line.
    """
    lines = []
    ids: dict[str, str] = {}
    renamed: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for row in read_rows(path, line_column="prompt"):
        line = _parse(row, defaults, renamed, models)
        name = next((k for k in ("custom_id", "id") if line.columns.get(k) is not None), None)
        if name is not None:
            key = json.dumps(line.columns[name], sort_keys=True)
            if key in ids:
                found = f"{key}, as {ids[key]}"
                raise InputError(f"{row.where}: {name}", found, "each row needs its own")
            ids[key] = row.where.removeprefix(f"{path} ")
        lines.append(line)
    if not lines:
        raise InputError(str(path), "no prompts", "needs rows with a prompt or messages")
    for name in sorted(renamed):
        note(f"column {name} has the name of a result's field: it is input_{name} in the output")
    if models:
        note(f"rows name the model {', '.join(sorted(models))}; the model of this command answers")
    return lines


def _parse(
    row: Row, defaults: GenerationOptions, renamed: Counter[str], models: Counter[str]
) -> Line:
    """One row; counts columns that are renamed and models that are named."""
    where, given = row.where, dict(row.fields)
    columns: dict[str, Any] = {"id": given.pop("id")} if "id" in given else {}
    raw = False
    if "body" in given and ("custom_id" in given or "url" in given):
        given, columns, raw = _openai(given, columns, where)
    named_model = given.pop("model", None)
    if named_model is not None:
        models[str(named_model)] += 1
    prompt, messages = given.pop("prompt", None), given.pop("messages", None)
    if row.is_text and isinstance(messages, str):
        messages = parse_json(messages, f"{where}: messages")
    _check_prompt(prompt, messages, where)
    values: dict[str, object] = {}
    for name, value in given.items():
        option = ALIASES.get(name, name)
        if option in _OPTIONS:
            values[option] = _from_text(value) if row.is_text else value
            continue
        meant = near_miss(name, _KNOWN)
        if meant is not None and meant not in row.fields:
            raise InputError(f"{where}: {name}", "no such option", f"did you mean {meant}?")
        if _is_taken(name):
            renamed[name] += 1
            name = f"input_{name}"
        columns[name] = value
    try:
        if "mode" in values:
            defaults = _for_mode(defaults, values.pop("mode"))
        options = defaults.updated(values)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", error.found, error.allowed) from None
    return Line(row.number, prompt if messages is None else messages, options, columns, raw)


def _check_prompt(prompt: Any, messages: Any, where: str) -> None:
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


def _openai(
    given: dict[str, Any], columns: dict[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """The body of a row in OpenAI's batch format, the other columns, and whether it is raw text."""
    others = {name: value for name, value in given.items() if name not in _ENVELOPE}
    if others:
        raise InputError(f"{where}: {next(iter(others))}", "given", "goes into body")
    if given.get("custom_id") is not None:
        columns = {"custom_id": given["custom_id"], **columns}
    if given.get("method", "POST") != "POST":
        raise InputError(f"{where}: method", repr(given["method"]), "must be POST")
    url, body = given.get("url", "/v1/chat/completions"), given["body"]
    if url not in _URLS:
        raise InputError(f"{where}: url", repr(url), f"allowed: {', '.join(_URLS)}")
    if not isinstance(body, dict):
        raise InputError(f"{where}: body", type(body).__name__, "must be a JSON object")
    asked = _body(body, where)
    if _URLS[url] not in asked:
        raise InputError(f"{where}: body.{_URLS[url]}", "missing", f"{url} needs it")
    return asked, columns, url == "/v1/completions"


def _body(body: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields of a body that we read, under our names."""
    asked: dict[str, Any] = {}
    for name, value in body.items():
        if value is None:
            continue
        if name in _WITHOUT_EFFECT:
            only = _WITHOUT_EFFECT[name]
            if only is not None and value != only:
                raise InputError(f"{where}: body.{name}", repr(value), f"must be {only!r}")
            continue
        if name not in ("model", "top_logprobs") and name not in _KNOWN:
            raise InputError(f"{where}: body.{name}", "given", "not done in a batch; remove it")
        asked[name] = value
    top = asked.pop("top_logprobs", 0)
    if isinstance(asked.get("logprobs"), bool):
        asked["logprobs"] = top if asked["logprobs"] else None
    return asked


def _is_taken(name: str) -> bool:
    from trimode.engine.result import RESULT_FIELDS

    return name in RESULT_FIELDS


def _from_text(value: Any) -> object:
    """What a cell of a table means as an option: a number, true, a list; else its text."""
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return {"TRUE": True, "FALSE": False}.get(value.upper(), value)


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
            asked = replace(prompt, raw=True, system=None) if line.raw else prompt
            ids = asked.encoded(engine.model, line.prompt)
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
    content = {"input": hashlib.sha256(source.read_bytes()).hexdigest()}
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
        """Keep other runs away from the output.

        Raises:
            InputError: another run writes it, or it cannot be written.
        """
        from filelock import FileLock, Timeout

        if self.output.is_dir():
            raise InputError("output", f"{self.output} is a directory", "must be a file")
        if not self.output.parent.is_dir():
            raise InputError("output", f"no directory {self.output.parent}", "create it first")
        path = self.output.with_name(f".{self.output.name}.lock")
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found = f"{self.output} is being written by another run"
            raise InputError("output", found, "wait for it, or give another file") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            lock.release()

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
        if rows and (changes := self._changes(rows[0])):
            found = f"{self.path} was left by another input or other options ({changes})"
            raise InputError("output", found, "run it as it was, remove it or pass --overwrite")
        lost = self._content().count(b"\n", self._intact) if rows else 0
        if lost > 0:  # a torn last line has no end
            note(f"{self.path}: line {len(rows) + 1} is damaged; {lost} lines are computed again")
        return {row["line"] for row in rows[1:]}

    def _changes(self, header: Mapping[str, Any]) -> str:
        """What differs between the journal's run and this one, in words; empty if nothing does."""
        before = header.get("made_with")
        if not isinstance(before, dict):
            return "written by another version"
        return ", ".join(
            "another input" if name == "input" else f"{name} was {before.get(name)!r}, is {value!r}"
            for name, value in self.made_with.items()
            if before.get(name) != value
        )

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
