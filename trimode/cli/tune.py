"""`trimode tune`: what a pass costs here, and from which acceptance speculation pays."""

import json
import sys

from trimode.cli import options as opt
from trimode.cli.grouped import grouped

_BLOCKS = (3, 4, 6, 8, 12, 16, 32)


@grouped
def tune(
    *,
    model: opt.ModelOptions,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Measure the cost of a pass by its rows; `--mode auto` decides by it.

    Run it when the machine is otherwise idle. The first request in mode auto measures by itself
    if no figures are kept yet.
    """
    loaded = opt.load_model(model, progress=not no_progress)
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from trimode.cli.render import spinner
    from trimode.decoding import break_even
    from trimode.engine.costs import cost_curve

    with spinner("timing passes", enabled=not no_progress):
        curve = cost_curve(loaded, again=True)
    needed = {b: round(break_even(curve, b), 2) for b in _BLOCKS if b < curve.rows[-1]}
    if json_output:
        sys.stdout.write(json.dumps({**asdict(curve), "break_even_acceptance": needed}) + "\n")
        return
    table = Table(title=f"{loaded.name}, {loaded.runner.format.name}: one pass, 256 tokens cached")
    for column in ("rows", "ms", "ms, drafting", "times one row"):
        table.add_column(column, justify="right")
    for rows, plain, adapted in zip(curve.rows, curve.plain, curve.adapted, strict=True):
        ratio = f"{plain / curve.plain[0]:.2f}"
        table.add_row(str(rows), f"{plain * 1e3:.1f}", f"{adapted * 1e3:.1f}", ratio)
    console = Console()
    console.print(table)
    pairs = ", ".join(f"{length:.2f} at block {block}" for block, length in needed.items())
    console.print(f"linear beats ar from an acceptance length of {pairs}.", highlight=False)
