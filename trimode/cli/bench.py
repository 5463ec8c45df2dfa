"""`trimode bench`: which mode pays on a user's own prompts."""

import json
import re
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.batch import PromptColumn, Split, existing_rows
from trimode.cli.env import facts
from trimode.cli.grouped import grouped
from trimode.cli.render import note
from trimode.cli.signals import Terminated
from trimode.config import DEFAULT_MODEL, GenerationOptions, check_range
from trimode.errors import InputError, TrimodeError
from trimode.rows import content_digest
from trimode.workload import Columns, Line, read_workload

if TYPE_CHECKING:
    from trimode.bench.remote import RemoteTarget
    from trimode.bench.settings import Grid, Setting
    from trimode.bench.target import Target
    from trimode.checkpoints import LoadedModel
    from trimode.engine import EncodedPrompt

DEFAULT_BUDGET = "10m"
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """Which rows of the file are asked, and where it has what."""

    prompt_column: PromptColumn = None
    reference_column: Annotated[
        str | None,
        typer.Option("--reference-column", help="The column of right answers, if unusual."),
    ] = None
    split: Split = None
    sample: Annotated[
        int | None, typer.Option("--sample", help="Ask this many rows, drawn by --seed.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchedModel(opt.ModelOptions):
    """The model; with --url it is measured only if it is named."""

    model: Annotated[
        str | None,
        opt.option("--model", "-m", help="As everywhere; with --url only measured if named."),
    ] = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """What is asked of every answer; a row may say otherwise."""

    max_tokens: opt.MaxTokens = 128
    temperature: opt.Temperature = 0.0
    top_p: opt.TopP = 1.0
    seed: opt.Seed = 0

    def base(self) -> GenerationOptions:
        """Options of a request, without those that settings choose."""
        return GenerationOptions.from_mapping(asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class GridOptions:
    """What is compared."""

    modes: Annotated[
        str | None,
        typer.Option("--modes", help="Comma-separated [ar,linear,quadratic,auto]."),
    ] = None
    block_lengths: Annotated[
        str | None, typer.Option("--block-lengths", help="Comma-separated.")
    ] = None
    thresholds: Annotated[
        str | None, typer.Option("--thresholds", help="Of diffusion, comma-separated.")
    ] = None
    concurrency: Annotated[
        str, typer.Option("--concurrency", help="Requests at a time, comma-separated.")
    ] = "1,8"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Servers that are measured too."""

    url: Annotated[
        list[str] | None,
        typer.Option("--url", help="OpenAI-compatible API, with /v1; repeat for several."),
    ] = None
    api_key: Annotated[
        str | None, typer.Option("--api-key", envvar="OPENAI_API_KEY", help="Sent to --url.")
    ] = None
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds of silence until a request has failed.")
    ] = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EffortOptions:
    """How long is measured, and how answers are judged."""

    repeats: Annotated[
        int, typer.Option("--repeats", help="Times that each prompt is asked, if time allows.")
    ] = 3
    budget: Annotated[
        str, typer.Option("--budget", help="Time of measuring: 90s, 10m, 1h, or none for no limit.")
    ] = DEFAULT_BUDGET
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            help="exact, contains, numeric, json, python-tests, regex or MODULE:FUNCTION.",
        ),
    ] = None
    sandbox: Annotated[
        bool, typer.Option("--sandbox/--no-sandbox", help="Run code of answers in bubblewrap.")
    ] = True
    max_quality_loss: Annotated[
        float | None,
        typer.Option(
            "--max-quality-loss",
            help="Share of quality that may be lost, 0.02 for 2 %; without it only modes whose "
            "text is ar's are recommended.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions:
    """Where results go."""

    output: Annotated[
        Path | None,
        typer.Option("--output", help="Directory of the report; resumes [bench-WORKLOAD]."),
    ] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Measure anew.")] = False
    json_output: opt.Json = False
    no_progress: opt.NoProgress = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """All options of a run."""

    source: Path
    model: BenchedModel
    workload: WorkloadOptions
    answers: AnswerOptions
    prompt: opt.PromptOptions
    grid: GridOptions
    servers: ServerOptions
    effort: EffortOptions
    results: ResultOptions
    search: bool = False


@grouped
def bench(
    workload_file: Annotated[
        Path | None,
        typer.Argument(metavar="WORKLOAD", help="Prompts: JSONL, CSV, Parquet, text, directory."),
    ] = None,
    *,
    model: BenchedModel,
    workload: WorkloadOptions,
    answers: AnswerOptions,
    prompt: opt.PromptOptions,
    grid: GridOptions,
    servers: ServerOptions,
    effort: EffortOptions,
    results: ResultOptions,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="A B", help="Say what changed between two results."),
    ] = None,
) -> None:
    """Measure the modes on your prompts, and say which one pays.

    The same command goes on with a run that was interrupted.
    """
    if compare is not None:
        if workload_file is not None:
            raise InputError("compare", str(workload_file), "takes two results and no workload")
        _compare(compare, as_json=results.json_output)
        return
    if workload_file is None:
        raise InputError("workload", "missing", "give a file of prompts, or --compare A B")
    run_workload(
        Asked(
            source=workload_file,
            model=model,
            workload=workload,
            answers=answers,
            prompt=prompt,
            grid=grid,
            servers=servers,
            effort=effort,
            results=results,
        )
    )


def run_workload(asked: Asked, *, show: bool = True) -> dict[str, Any]:
    """Measure a workload and write the report; returns the summary.

    Args:
        asked: all options.
        show: whether to print the table and the recommendation.

    Raises:
        InputError: something is wrong that was given.
    """
    source = existing_rows(asked.source, "workload")
    budget = seconds_of(asked.effort.budget)
    check_range("repeats", asked.effort.repeats, 1, None)
    check_range("max_quality_loss", asked.effort.max_quality_loss, 0.0, 1.0)
    check_range("timeout", asked.servers.timeout, 0.0, None, exclusive_low=True)
    lines = _lines(asked, source)
    from trimode.bench.record import Record
    from trimode.bench.report import write_report
    from trimode.bench.run import Plan, judge, measure, prompt_rows
    from trimode.evaluation.scoring import scorer
    from trimode.journal import locked

    grid = _grid(asked)
    grid.settings("local")  # what is wrong with it is said before any work
    effort = asked.effort
    judge_by = None if effort.score is None else scorer(effort.score, sandbox=effort.sandbox)
    if judge_by is not None:
        _check_references(lines)
    output = asked.results.output or Path(f"bench-{source.stem}")
    if output.exists() and not output.is_dir():
        raise InputError("output", f"{output} is a file", "must be a directory")
    with ExitStack() as stack:
        stack.enter_context(locked(output))
        output.mkdir(exist_ok=True)
        record = Record(output)
        made_with = _made_with(asked, source)
        if not asked.results.overwrite:
            record.check(made_with)
        gone: list[str] = []
        if asked.results.overwrite or not record.finished:
            prepared = _prepare(asked, grid, lines)
            plan = Plan(
                lines=list(lines.values()),
                settings=prepared.settings,
                repeats=effort.repeats,
                budget=budget,
                seed=asked.answers.seed,
                scorer=judge_by,
                advance=stack.enter_context(_Progress(enabled=not asked.results.no_progress)),
            )
            going_on = record.begin(
                made_with, _facts(asked, prepared), anew=asked.results.overwrite
            )
            if not going_on:
                record.append(prompt_rows(lines, prepared.skipped))
            elif not asked.results.no_progress:
                note(f"{record.path} is there already: the run goes on")
            usable = [number for number in lines if number not in prepared.skipped]
            try:
                measure(plan, usable, prepared.targets, record)
                judge(plan, lines, prepared.encoded, prepared.model, record)
            except (KeyboardInterrupt, Terminated):
                sys.stderr.write("stopped; the same command goes on\n")
                raise
            gone = [name for name, target in prepared.targets.items() if target.gone]
            if not gone:
                record.append([{"kind": "end"}])
        else:
            note(f"{record.path} is complete; --overwrite measures anew")
        summary = write_report(output, record.rows, max_quality_loss=effort.max_quality_loss)
    if show:
        _print(summary, output, as_json=asked.results.json_output)
    if gone:
        names = ", ".join(gone)
        raise TrimodeError(f"{names} stopped answering; the same command goes on when it is back")
    if not any(row["baseline"] and row["prompts"] for row in summary["settings"]):
        raise TrimodeError(f"nothing could be measured; {output / 'report.html'} says why")
    return summary


def seconds_of(budget: str) -> float | None:
    """A duration such as 10m in seconds; None for `none`.

    Raises:
        InputError: it is no duration.
    """
    if budget.strip().lower() == "none":
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", budget)
    if found is None or float(found[1]) == 0:
        raise InputError("budget", repr(budget), "must be a time such as 90s, 10m or 1h, or none")
    return float(found[1]) * _UNITS[found[2] or "s"]


def _lines(asked: Asked, source: Path) -> dict[int, Line]:
    """The rows that are asked, by number."""
    from dataclasses import replace

    from trimode.bench.run import sample, without_choice

    options = asked.workload
    columns = Columns(options.prompt_column, options.reference_column, options.split)
    found = read_workload(source, asked.answers.base(), columns=columns, say=note)
    chosen = {"mode", "block_length", "threshold"}
    ignored = sorted({name for line in found for name in line.given & chosen})
    if ignored:
        note(f"rows give {', '.join(ignored)}: not used, the run chooses them")
    found = sample(found, options.sample, asked.answers.seed)
    return {i: replace(line, options=without_choice(line.options)) for i, line in enumerate(found)}


def _check_references(lines: dict[int, Line]) -> None:
    without = [line.number for line in lines.values() if line.reference is None]
    if len(without) == len(lines):
        raise InputError("score", "no row has a reference", "name the column: --reference-column")
    if without:
        shown = ", ".join(map(str, without[:5])) + (", ..." if len(without) > 5 else "")
        note(f"rows without a reference, which are not scored ({len(without)}): line {shown}")


def _grid(asked: Asked) -> "Grid":
    from trimode.bench.settings import Grid

    options = asked.grid
    modes = None if options.modes is None else tuple(_names(options.modes))
    lengths = _numbers("block_lengths", options.block_lengths, int)
    for length in lengths or ():
        check_range("block_lengths", length, 1, 256)
    bars = _numbers("thresholds", options.thresholds, float)
    for bar in bars or ():
        check_range("thresholds", bar, 0.0, None)
    loads = _numbers("concurrency", options.concurrency, int) or ()
    for load in loads:
        check_range("concurrency", load, 1, 1024)
    return Grid(
        modes=modes,
        block_lengths=lengths,
        thresholds=bars,
        concurrency=loads,
        lossy=asked.effort.max_quality_loss is not None or bars is not None,
        search=asked.search,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(field: str, text: str | None, kind: type) -> tuple[Any, ...] | None:
    """Numbers of a list with commas, rising.

    Raises:
        InputError: one is no number, or is there twice.
    """
    if text is None:
        return None
    try:
        found = sorted(kind(name) for name in _names(text))
    except ValueError:
        words = "whole numbers" if kind is int else "numbers"
        raise InputError(field, repr(text), f"must be {words}, comma-separated") from None
    if len({*found}) < len(found):
        raise InputError(field, repr(text), "name each value once")
    return tuple(found)


@dataclass(slots=True)
class _Prepared:
    """Everything that a run needs, checked."""

    settings: list["Setting"]
    targets: dict[str, "Target"]
    skipped: dict[int, str]
    encoded: dict[int, list[int]]
    model: "LoadedModel | None"
    models: dict[str, str]
    """What each target runs."""
    busy: bool = False
    """Whether other programs disturbed the timing of passes, by which `auto` decides."""


def _prepare(asked: Asked, grid: "Grid", lines: dict[int, Line]) -> _Prepared:
    """Load the model, ask the servers, and find out what cannot be run."""
    from trimode.bench.settings import LOCAL

    prepared = _Prepared([], {}, {}, {}, None, {})
    urls = asked.servers.url or []
    if len({*urls}) < len(urls):
        raise InputError("url", ", ".join(urls), "name each server once")
    for url in urls:  # before the model is loaded: a server that is not there is said at once
        target = _server(asked, url, lines)
        prepared.targets[target.url] = target
        prepared.models[target.url] = target.model
        prepared.settings += _settings_of(target, grid)
    if not urls or asked.model.model is not None:
        _prepare_local(asked, grid, lines, prepared)
        prepared.models[LOCAL] = asked.model.model or DEFAULT_MODEL
    if len(prepared.skipped) == len(lines):
        first = next(iter(prepared.skipped.values()))
        raise InputError("workload", f"no prompt can be answered ({first})", "give other prompts")
    if prepared.skipped:
        note(f"{len(prepared.skipped)} of {len(lines)} prompts are left out, the first: "
             f"line {lines[min(prepared.skipped)].number}, "
             f"{prepared.skipped[min(prepared.skipped)]}")  # fmt: skip
    order = {setting: i for i, setting in enumerate(prepared.settings)}
    prepared.settings.sort(key=lambda s: (s.concurrency, s.target != LOCAL, order[s]))
    return prepared


def _server(asked: Asked, url: str, lines: dict[int, Line]) -> "RemoteTarget":
    from trimode.bench.remote import Asked as AskedRemotely
    from trimode.bench.remote import RemoteTarget

    questions = {
        number: AskedRemotely(
            line.prompt
            if not isinstance(line.prompt, str) or _is_raw(asked, line)
            else opt.as_messages(line.prompt, asked.prompt.system),
            _is_raw(asked, line),
            line.options,
            line.form,
        )
        for number, line in lines.items()
    }
    servers = asked.servers
    return RemoteTarget(url, questions, api_key=servers.api_key, timeout=servers.timeout)


def _is_raw(asked: Asked, line: Line) -> bool:
    return line.raw or (asked.prompt.raw and isinstance(line.prompt, str))


def _text_alone(prompt: "EncodedPrompt") -> tuple[int, ...]:
    """The tokens of a prompt; raise InputError if it holds pictures."""
    if prompt.images:
        raise InputError("images", f"{len(prompt.images)} given", "bench measures texts alone")
    return prompt.tokens


def _settings_of(target: "RemoteTarget", grid: "Grid") -> list["Setting"]:
    """A server's modes if it is ours; else it is taken as it is."""
    from trimode.bench.settings import AS_IT_IS, Setting

    if target.is_ours:
        settings = grid.settings(target.url, target.block_length)
        missing = [] if grid.modes else sorted(target.unavailable)
        if missing:
            note(f"{target.url} cannot run {', '.join(missing)}: left out")
        return [setting for setting in settings if setting.mode not in missing]
    return [Setting(target.url, AS_IT_IS, load) for load in grid.concurrency]


def _prepare_local(asked: Asked, grid: "Grid", lines: dict[int, Line], prepared: _Prepared) -> None:
    """Load the model and see which prompts and settings it can run."""
    from dataclasses import replace

    from trimode.bench.local import LocalTarget
    from trimode.bench.run import fit
    from trimode.bench.settings import LOCAL
    from trimode.engine.costs import cost_curve, is_kept

    named = asked.grid.modes is not None
    options = asked.answers.base()
    wanted = [replace(options, mode=mode) for mode in grid.modes or () if mode != "ar"]
    progress = not asked.results.no_progress
    model = opt.load_model(asked.model.named(asked.model.model or DEFAULT_MODEL),
                           progress=progress, asked=wanted)  # fmt: skip
    prompts: dict[int, list[int]] = {}
    for number, line in lines.items():
        form = replace(asked.prompt, raw=True, system=None) if line.raw else asked.prompt
        try:
            prompts[number] = list(_text_alone(form.encoded(model, line.prompt)))
        except InputError as error:
            prepared.skipped[number] = str(error)
    if not prompts:
        return
    if not is_kept(model) and progress:
        note("timing passes, up to half a minute, once for this model and machine")
    target: LocalTarget = LocalTarget(
        model, prompts, {i: lines[i].options for i in prompts}, cost_curve(model)
    )
    prepared.busy = not is_kept(model)
    found = fit(target, grid.settings(LOCAL, model.config.block_length), list(prompts))
    for setting, error in found.left_out.items():
        if named:
            raise error
        if setting.concurrency == grid.concurrency[0]:
            note(f"{setting.way} is left out: {error}")
    prepared.settings += found.settings
    prepared.skipped |= found.skipped
    prepared.targets[LOCAL] = target
    prepared.encoded, prepared.model = prompts, model


def _made_with(asked: Asked, source: Path) -> dict[str, Any]:
    """What the results depend on, by name."""
    effort = {name: v for name, v in asdict(asked.effort).items() if name != "max_quality_loss"}
    groups = (asked.model, asked.workload, asked.answers, asked.prompt, asked.grid)
    found = {name: value for group in groups for name, value in asdict(group).items()}
    others = {"url": asked.servers.url, "search": asked.search, **effort}
    lossy = {"lossy": asked.effort.max_quality_loss is not None}
    return {"input": content_digest(source), **found, **others, **lossy}


def _facts(asked: Asked, prepared: _Prepared) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    model = asdict(asked.model) | {"model": asked.model.model or DEFAULT_MODEL}
    return {
        "command": _command(sys.argv[1:]),
        "workload": str(asked.source),
        "machine": facts(),
        "model": model,
        "models": prepared.models,
        "busy": prepared.busy,
        "settings": [setting.to_json() for setting in prepared.settings],
    }


def _command(words: list[str]) -> str:
    """The command line for readers, without the key."""
    shown = [re.sub(r"^--api-key=.*", "--api-key=...", word) for word in words]
    for i, word in enumerate(words[:-1]):
        if word == "--api-key":
            shown[i + 1] = "..."
    return shlex.join(["trimode", *shown])


class _Progress:
    """Progress on stderr: a bar with the time left, or a line now and then."""

    def __init__(self, *, enabled: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._enabled, self._terminal = enabled, console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self._bar = Progress(*columns, console=console, disable=not (enabled and self._terminal))
        self._task: Any = None
        self._said = 0.0

    def __enter__(self) -> "_Progress":
        self._bar.start()
        self._task = self._bar.add_task("warming up", total=1.0, left="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, what: str, share: float, left: float | None) -> None:
        """Show how far the run is."""
        words = "" if left is None else f"at most {_duration(left)} left at this load"
        self._bar.update(self._task, description=what, completed=share, left=words)
        if self._enabled and not self._terminal and share - self._said >= 0.1:
            self._said = share
            sys.stderr.write(f"{share:.0%} measured, {what}; {words}\n")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _print(summary: dict[str, Any], output: Path, *, as_json: bool) -> None:
    """The table, the recommendation, and where the rest is."""
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    from trimode.bench.report import narrow_rows

    console = Console(soft_wrap=True)
    header, rows = narrow_rows(summary)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(header):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Cut columns say nothing; a narrow terminal wraps long lines.
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, needed)).print(table)
    advice = summary["recommendation"]
    for sentence in (*advice["sentences"], *advice["others"]):
        console.print(sentence, highlight=False, markup=False)
    for line in summary["unsure"]:
        console.print(f"- {line}", highlight=False, markup=False)
    if summary["deploy"]:
        console.print(f"deploy: {summary['deploy']['command']}", highlight=False, markup=False)
    console.print(f"report: {output / 'report.html'}", highlight=False, markup=False)


def _compare(two: tuple[Path, Path], *, as_json: bool) -> None:
    from trimode.bench.compare import compare_results
    from trimode.bench.record import read_results

    found = compare_results(*(read_results(path) for path in two))
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for line in found["lines"]:
        sys.stdout.write(f"{line}\n")
