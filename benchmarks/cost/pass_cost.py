"""What a forward pass costs as a function of its rows, and whether a row depends on its neighbours.

    python benchmarks/cost/pass_cost.py [--model MODEL] [--context 256] [--repeats 15]

Prints a table and writes benchmarks/results/MACHINE/pass_cost.{json,png,svg}. Passes of all row
counts take turns. Medians and quartiles are reported. Of int8's C++ pass it also reports the share
that is not products with weights: attention, norms, rotation, quantising, Python.
"""

import argparse
import statistics
import time

import matplotlib as mpl
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.passes import run, text_tokens
from trimode import load
from trimode.model import KVCache
from trimode.model.runners import NativeRunner

ROWS = (1, 2, 4, 8, 16, 32, 64)
TARGET = 1.6
"""A 16-row pass should cost at most this many 1-row passes."""
OVERHEAD_TARGET = 0.3
"""Largest share of a pass beside its products."""


@torch.inference_mode()
def measure(source: str, dtype: str, context: int, repeats: int) -> dict[str, object]:
    model = load(source, dtype=dtype, progress=False)
    runner = model.runner
    cache = KVCache(model.config, context + max(ROWS), dtype=runner.kv_dtype, device=runner.device)
    text = text_tokens(model)
    run(runner, cache, min(context, 512), text)
    cache.keep(range(min(context, 512)))
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    beside: dict[int, list[float]] = {rows: [] for rows in ROWS}
    for _ in track(range(repeats), f"{dtype}", transient=True):
        for rows in ROWS:
            start = time.perf_counter()
            _, head = run(runner, cache, rows, text)
            seconds = time.perf_counter() - start
            times[rows].append(seconds * 1e3)
            if isinstance(runner, NativeRunner):
                beside[rows].append(1 - (runner.products_seconds + head) / seconds)
    whole = runner.logits(run(runner, cache, max(ROWS), text)[0])
    independent = {
        rows: torch.equal(runner.logits(run(runner, cache, rows, text)[0]), whole[:rows])
        for rows in ROWS[:-1]
    }
    return {
        "kernel": runner.describe(),
        "milliseconds": {
            rows: {
                "median": round(statistics.median(values), 2),
                "quartiles": [round(q, 2) for q in statistics.quantiles(values, n=4)[::2]],
            }
            for rows, values in times.items()
        },
        "share_beside_products": {
            rows: round(statistics.median(shares), 3) for rows, shares in beside.items() if shares
        },
        "logits_equal_those_of_a_64_row_pass": independent,
    }


def show(results: dict[str, dict], info: dict) -> None:
    console = Console()
    console.print(f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}")
    table = Table(title="milliseconds of a pass (median, quartiles; ratio to one row)")
    table.add_column("rows", justify="right")
    for dtype, result in results.items():
        table.add_column(f"{dtype} ({result['kernel']})", justify="right")
        table.add_column("bits equal", justify="center")
    for rows in ROWS:
        cells = [str(rows)]
        for result in results.values():
            times = result["milliseconds"]
            median, (low, high) = times[rows]["median"], times[rows]["quartiles"]
            ratio = median / times[1]["median"]
            cells.append(f"{median:.1f} ({low:.1f} to {high:.1f}) {ratio:.2f}x")
            equal = result["logits_equal_those_of_a_64_row_pass"].get(rows)
            cells.append("" if equal is None else "yes" if equal else "no")
        table.add_row(*cells)
    console.print(table)
    for dtype, result in results.items():
        times = result["milliseconds"]
        ratio = times[16]["median"] / times[1]["median"]
        verdict = "met" if ratio <= TARGET else "missed"
        console.print(f"{dtype}: 16 rows cost {ratio:.2f} x 1 row; target {TARGET}: {verdict}")
        for rows, share in result["share_beside_products"].items():
            verdict = "met" if share <= OVERHEAD_TARGET else "missed"
            said = f"{rows} rows: {share:.0%} of the pass is not products with weights"
            console.print(f"{said}; target {OVERHEAD_TARGET:.0%}: {verdict}", highlight=False)


def plot(results: dict[str, dict], info: dict) -> None:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for dtype, result in results.items():
        medians = [result["milliseconds"][rows]["median"] for rows in ROWS]
        axes.plot(ROWS, medians, marker="o", label=f"{dtype} ({result['kernel']})")
    axes.set(xlabel="rows in the pass", ylabel="milliseconds", title=f"cost(rows), {info['cpu']}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(ROWS, [str(rows) for rows in ROWS])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    for suffix in ("png", "svg"):
        figure.savefig(results() / f"pass_cost.{suffix}", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--context", type=int, default=256, help="tokens in the KV cache (<= 512)")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    info = header()
    results = {
        dtype: measure(arguments.model, dtype, arguments.context, arguments.repeats)
        for dtype in ("fp32", "bf16", "int8")
    }
    save("pass_cost", {**info, "context": arguments.context, "results": results})
    show(results, info)
    plot(results, info)


if __name__ == "__main__":
    main()
