"""`trimode tune`: what a pass costs here, and from which acceptance speculation pays.

With a workload: `trimode bench` with the search on. With --cost-curve: what another machine would
do.
"""

import json
import sys
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.bench import (
    AnswerOptions,
    Asked,
    BenchedModel,
    EffortOptions,
    GridOptions,
    ResultOptions,
    ServerOptions,
    WorkloadOptions,
    run_workload,
)
from trimode.cli.grouped import grouped
from trimode.config import DEFAULT_BLOCK_LENGTH, DEFAULT_MODEL, MOST_BLOCK_LENGTH, check_range
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.bench.machines import Demand
    from trimode.decoding import CostCurve

_BLOCKS = (3, 4, 6, 8, 12, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherMachine:
    """A machine that is not here."""

    cost_curve: Annotated[
        str | None,
        typer.Option(
            "--cost-curve",
            help="What another machine would do: a file of `tune --json`, or b200-8b, "
            "dgx-spark-8b-fp8, dgx-spark-8b-int4, gb200-8b-fp8, rtx-pro-6000-8b-fp8.",
        ),
    ] = None
    acceptance: Annotated[
        float | None,
        typer.Option("--acceptance", help="Tokens a cycle of linear, instead of a workload."),
    ] = None
    block_length: Annotated[
        int | None, typer.Option("--block-length", help="At which --acceptance was measured [32].")
    ] = None
    requests_per_second: Annotated[
        float | None,
        typer.Option(
            "--requests-per-second",
            help="Of all clients together: says how many replicas they need.",
        ),
    ] = None
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens", help="With it: of a request, but for those in the prefix cache."
        ),
    ] = None
    answer_tokens: Annotated[
        int | None, typer.Option("--answer-tokens", help="With it: of a request.")
    ] = None

    def demand(self) -> "Demand | None":
        """What clients ask for, if that was given.

        Raises:
            InputError: a part of it is missing, or goes with what is not given.
        """
        from trimode.bench.machines import Demand

        parts = {
            "requests_per_second": self.requests_per_second,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
        }
        given = {name: value for name, value in parts.items() if value is not None}
        if not given:
            return None
        first = next(iter(given))
        if self.cost_curve is None:
            raise InputError(first, f"{given[first]:g}", "goes with --cost-curve")
        missing = [name for name in parts if name not in given]
        if missing:
            raise InputError(missing[0], "missing", f"goes with {first}")
        return Demand(**given)


@grouped
def tune(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL] [WORKLOAD]", help="As --model; a file of prompts."),
    ] = None,
    *,
    model: BenchedModel,
    machine: OtherMachine,
    workload: WorkloadOptions,
    answers: AnswerOptions,
    prompt: opt.PromptOptions,
    grid: GridOptions,
    servers: ServerOptions,
    effort: EffortOptions,
    results: ResultOptions,
) -> None:
    """Measure what a pass costs, or find the best setting.

    Run it when the machine is otherwise idle. The first request in mode auto measures by itself
    if no figures are kept yet. Figures of a busy machine are shown and not kept. With a workload it
    is `trimode bench` with more block lengths. With --cost-curve it computes what another machine
    would do with the acceptance that the workload has here.
    """
    name, source = _model_and_workload(words or [])
    model = model.named(name)
    asked = Asked(
        source=source or Path(),
        model=model,
        workload=workload,
        answers=answers,
        prompt=prompt,
        grid=grid,
        servers=servers,
        effort=effort,
        results=results,
        search=True,
    )
    _refuse_without_effect(machine, asked, has_workload=source is not None)
    if machine.cost_curve is not None:
        _other_machine(machine, asked, has_workload=source is not None)
        return
    if source is not None:
        run_workload(asked)
        return
    _costs(replace(model, model=model.model or DEFAULT_MODEL), results)


def _model_and_workload(words: list[str]) -> tuple[str | None, Path | None]:
    """Tell a model from a file of prompts.

    Raises:
        InputError: there are two models or two workloads.
    """
    workloads = [word for word in words if _is_workload(Path(word))]
    models = [word for word in words if word not in workloads]
    if len(models) > 1 or len(workloads) > 1:
        allowed = "give [MODEL] [WORKLOAD]"
        raise InputError("workload", f"{' '.join(words)!r}", allowed)
    return next(iter(models), None), next(map(Path, workloads), None)


_ROWS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")


def _is_workload(path: Path) -> bool:
    """Whether a word names prompts: by its suffix, or a directory without a model in it."""
    if path.suffix.lower() in _ROWS:
        return True
    return path.is_dir() and not (path / "config.json").exists()


def _refuse_without_effect(machine: OtherMachine, asked: Asked, *, has_workload: bool) -> None:
    """Raise InputError for an option that nothing would read."""
    if machine.cost_curve is None and machine.acceptance is not None:
        raise InputError("acceptance", f"{machine.acceptance:g}", "goes with --cost-curve")
    if machine.acceptance is None and machine.block_length is not None:
        found = str(machine.block_length)
        raise InputError("block_length", found, "goes with --acceptance; see --block-lengths")
    check_range("block_length", machine.block_length, 1, MOST_BLOCK_LENGTH)
    machine.demand()
    if has_workload:
        if machine.acceptance is not None:
            found = f"{machine.acceptance:g}"
            raise InputError("acceptance", found, "leave it out: the workload's is measured")
        return
    groups = (asked.workload, asked.answers, asked.prompt, asked.grid, asked.servers, asked.effort)
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if value != field.default and field.name != "api_key":  # which the environment may set
                raise InputError(field.name, str(value), "goes with a workload: tune FILE")
    for field in ("output", "overwrite"):
        if getattr(asked.results, field):
            raise InputError(field, "given", "goes with a workload: tune FILE")


def _other_machine(machine: OtherMachine, asked: Asked, *, has_workload: bool) -> None:
    """Compute what another machine would do."""
    from trimode.bench.machines import BUSY, capacity, expect, find_machine

    assert machine.cost_curve is not None
    found = find_machine(machine.cost_curve)
    if has_workload:
        quiet = replace(asked, grid=replace(asked.grid, modes="ar,linear", concurrency="1"))
        if asked.grid.modes is not None or asked.grid.concurrency != GridOptions().concurrency:
            raise InputError(
                "modes", "given", "with --cost-curve only linear is measured, at load 1"
            )
        acceptance, length = _measured_acceptance(run_workload(quiet, show=False))
    elif machine.acceptance is None:
        raise InputError("acceptance", "missing", "give it, or a workload to measure it on")
    else:
        acceptance, length = machine.acceptance, machine.block_length or DEFAULT_BLOCK_LENGTH
    rows, demand = expect(found, acceptance, length), machine.demand()
    needed = [] if demand is None else capacity(found, rows, demand)
    if asked.results.json_output:
        facts = {"computed": True, "source": found.source, "acceptance": acceptance,
                 "block_length": length, "loads": rows}  # fmt: skip
        if demand is not None:
            facts |= {"demand": asdict(demand), "busy": BUSY, "capacity": needed}
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"computed, not measured: tokens/s on {found.source}")
    for column in ("requests", "ar", f"linear {length}", "auto", "what auto does"):
        table.add_column(column, justify="right")
    for row in rows:
        rates = (f"{row[mode]:.0f}" for mode in ("ar", "linear", "auto"))
        table.add_row(str(row["load"]), *rates, row["auto_plan"])
    console = Console(soft_wrap=True)
    console.print(table)
    said = f"At {acceptance:.2f} tokens a cycle of linear with block length {length}: "
    console.print(said + crossing(rows), highlight=False)
    if demand is None:
        return
    table = Table(
        title=f"computed: replicas for {demand.requests_per_second:g} requests/s of "
        f"{demand.prompt_tokens} + {demand.answer_tokens} tokens, {BUSY:.0%} busy"
    )
    for column in ("requests at a time", "an answer takes", "replicas", "with ar"):
        table.add_column(column, justify="right")
    for row in needed:
        seconds = f"{row['answer_seconds']:.2g} s"
        table.add_row(str(row["load"]), seconds, str(row["replicas"]), str(row["replicas_ar"]))
    console.print(table)


def _measured_acceptance(summary: dict[str, Any]) -> tuple[float, int]:
    """The acceptance of the longest draft that was measured, and its length.

    Raises:
        InputError: nothing was drafted.
    """
    drafted = [row for row in summary["settings"] if row.get("acceptance_length")]
    if not drafted:
        raise InputError("workload", "no draft was verified", "the model must be able to draft")
    longest = max(drafted, key=lambda row: row["block_length"])
    return max(2.0, longest["acceptance_length"]), longest["block_length"]


def crossing(rows: list[dict[str, Any]]) -> str:
    """From which load on ar beats linear, in words."""
    ar_wins = [row["load"] for row in rows if row["best"] == "ar"]
    if not ar_wins:
        return f"linear beats ar up to {rows[-1]['load']} requests at a time."
    if len(ar_wins) == len(rows):
        return "ar beats linear at every load."
    return f"linear beats ar below {ar_wins[0]} requests at a time; from there on ar does."


def _costs(model: opt.ModelOptions, results: ResultOptions) -> None:
    """Time passes, and say what the costs mean."""
    json_output, no_progress = results.json_output, results.no_progress
    loaded = opt.load_model(model, progress=not no_progress)
    from rich.console import Console
    from rich.table import Table

    from trimode.cli.render import note, spinner
    from trimode.engine.costs import keep, kept_at, measure

    with spinner("timing passes", enabled=not no_progress):
        measured = measure(loaded)
    curve = measured.curve
    needed = _needed(curve)
    kept = keep(loaded, measured)
    if json_output:
        fields = {
            **asdict(curve),
            "spread": measured.spread,
            "waited": measured.waited,
            "break_even_acceptance": needed,
            "kept_at": str(kept_at(loaded)) if kept else None,
        }
        sys.stdout.write(json.dumps(fields) + "\n")
    else:
        table = Table(
            title=f"{loaded.name}, {loaded.runner.format.name}: one pass, 256 tokens cached"
        )
        for column in ("rows", "ms", "ms, drafting", "times one row"):
            table.add_column(column, justify="right")
        for rows, plain, adapted in zip(curve.rows, curve.plain, curve.adapted, strict=True):
            ratio = f"{plain / curve.plain[0]:.2f}"
            table.add_row(str(rows), f"{plain * 1e3:.1f}", f"{adapted * 1e3:.1f}", ratio)
        console = Console(soft_wrap=True)
        console.print(table)
        console.print(verdict(needed, can_draft=loaded.can_draft), highlight=False)
        if kept:
            console.print(f"kept in {kept_at(loaded)}", highlight=False)
    if not kept:
        reason = measured.doubt or f"{kept_at(loaded)} cannot be written"
        note(f"not kept: {reason}. Run it again when the machine is idle.")


def _needed(curve: "CostCurve") -> dict[int, float]:
    """The acceptance length from which `linear` beats `ar`, by block length, where timed."""
    from trimode.decoding import break_even

    return {b: round(break_even(curve, b), 2) for b in _BLOCKS if b < curve.rows[-1]}


def verdict(needed: dict[int, float], *, can_draft: bool) -> str:
    """What the costs mean for the model, in a sentence or two."""
    if not needed:
        return (
            f"Too few sizes of a pass were timed to say when linear beats ar ({_BLOCKS[0]} rows)."
        )
    pairs = ", ".join(f"{length:.2f} at block {block}" for block, length in needed.items())
    means = f"linear beats ar from an acceptance length of {pairs}."
    within = [block for block, length in needed.items() if length < block]
    if not can_draft:
        return f"{means} This model was not trained to draft: convert it first (trimode convert)."
    if not within:
        return f"{means} No draft is long enough for that here: use ar, or auto, which does."
    best = min(within, key=lambda block: needed[block] / block)
    return (
        f"{means} `trimode compare` shows this model's own acceptance: drafts pay where it is "
        f"higher, most easily at block {best}. auto decides so by itself."
    )
