"""`trimode tune`: what a pass costs here, and from which acceptance speculation pays."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from trimode.cli import options as opt
from trimode.cli.grouped import grouped

if TYPE_CHECKING:
    from trimode.decoding import CostCurve

_BLOCKS = (3, 4, 6, 8, 12, 16, 32)


@grouped
def tune(
    name: opt.ModelArgument = None,
    *,
    model: opt.ModelOptions,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Measure the cost of a pass; `--mode auto` decides by it.

    Run it when the machine is otherwise idle. The first request in mode auto measures by itself
    if no figures are kept yet. Figures of a busy machine are shown and not kept.
    """
    loaded = opt.load_model(model.named(name), progress=not no_progress)
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
