"""Writes the tables and plots of docs/benchmarks.md from the results.

    python benchmarks/page.py [--check]

A table stands between `<!-- table avx2/engines -->` and `<!-- end -->`: the machine's kind and the
name of a result. It is followed by the command that made the result. Words around tables are
written by hand. `--check` writes nothing and names what differs; a test runs it.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.lib.machine import KINDS, RESULTS
from benchmarks.lib.plots import rate_bars

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
PICTURES = PAGE.parent / "pictures"
NAMES = {
    "avx2": "AVX2 (AMD Zen 3)",
    "avx512_vnni": "AVX-512 VNNI (AMD Zen 5)",
    "amx": "AMX (Intel Xeon)",
}
TABLE = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end -->", re.DOTALL)

Result = dict[str, Any]
Rows = list[list[str]]


def read(name: str) -> Result | None:
    """A result by kind and name; None if that kind of machine has not made it."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def markdown(head: Iterable[str], rows: Rows, words: int = 1) -> str:
    """A table whose first `words` columns are text, the others figures."""
    head = list(head)
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(value: float | None, digits: int = 0) -> str:
    """A number as it is printed; empty if there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def best_of(rows: list[Result], load: int, wanted: Callable[[Result], bool]) -> Result | None:
    """The fastest of an engine table's rows at a load."""
    chosen = [row for row in rows if row["concurrency"] == load and wanted(row)]
    return max(chosen, key=lambda row: row["tokens_per_second"], default=None)


def decision() -> str:
    """What to use on which machine: our fastest format, and llama.cpp's fastest."""
    rows = []
    for kind in KINDS:
        result = read(f"{kind}/engines")
        if result is None:
            continue
        found = result["rows"]
        for load in sorted({row["concurrency"] for row in found} - {4}):
            fastest = best_of(found, load, lambda r: r["engine"].startswith("trimode"))
            if fastest is None:
                continue
            engine = fastest["engine"]
            rates = {row["mode"]: row["tokens_per_second"] for row in found
                     if row["engine"] == engine and row["concurrency"] == load
                     and row["mode"] in ("ar", "auto")}  # fmt: skip
            theirs = best_of(found, load, lambda r: r["engine"].startswith("llama"))
            other = (
                f"{figure(theirs['tokens_per_second'])} ({theirs['engine'].removeprefix('llama-')})"
                if theirs
                else ""
            )
            best = max(rates, key=lambda mode: rates[mode])
            close = min(rates.values()) > 0.97 * max(rates.values())
            rows.append(
                [
                    NAMES[kind],
                    str(load),
                    engine.removeprefix("trimode-"),
                    figure(rates.get("ar")),
                    figure(rates.get("auto")),
                    other,
                    "either" if close else f"`{best}`",
                ]
            )
    head = ("machine", "requests", "format", "`ar`", "`auto`", "llama.cpp's fastest", "use")
    return markdown(head, rows)


def engines(result: Result) -> str:
    """Tokens a second of each engine and mode by load."""
    found = {(r["engine"], r["mode"], r["concurrency"]): r for r in result["rows"]}
    loads = sorted({load for _, _, load in found})
    rows = []
    for engine, mode in dict.fromkeys((engine, mode) for engine, mode, _ in found):
        each = {load: found.get((engine, mode, load)) for load in loads}
        first = each[loads[0]]
        cells = [
            cell
            for row in each.values()
            for cell in (_rate(row), figure(row and row.get("ratio"), 2))
        ]
        ttft = " / ".join(figure(v) for v in first["ttft_ms"]) if first else ""
        memory = figure(max(row["peak_megabytes"] for row in each.values() if row))
        rows.append([engine.replace("-", " ", 1), mode, *cells, ttft, memory])
    head = ["engine", "mode"]
    for load in loads:
        head += [f"{load} at once, tok/s", "ratio"]
    return markdown([*head, "TTFT ms, p50 / p95", "peak MB"], rows, 2)


def _rate(row: Result | None) -> str:
    if row is None:
        return ""
    rate = figure(row["tokens_per_second"])
    if round(row["least"]) == round(row["most"]):
        return rate
    return f"{rate} ({figure(row['least'])} to {figure(row['most'])})"


def roofline(result: Result) -> str:
    """Milliseconds and share of the limit by rows and format."""
    passes = {(p["dtype"], p["rows"]): p for p in result["passes"]}
    dtypes = sorted({dtype for dtype, _ in passes})
    rows = []
    for count in sorted({rows for _, rows in passes}):
        cells = [str(count)]
        for dtype in dtypes:
            entry = passes[dtype, count]
            spent, share = entry["milliseconds"], entry["share"]
            products = spent["layers"] + spent["head"]
            cells.append(f"{products:.2f} ({share['products']:.0%})")
            cells.append(f"{spent['pass']:.2f} ({share['pass']:.0%})")
        if {"int4", "int8"} <= set(dtypes):
            ratio = (
                passes["int4", count]["milliseconds"]["pass"]
                / passes["int8", count]["milliseconds"]["pass"]
            )
            cells.append(f"{ratio:.2f}")
        rows.append(cells)
    head = ["rows"]
    for dtype in dtypes:
        head += [f"{dtype}: products, ms", f"{dtype}: pass, ms"]
    if {"int4", "int8"} <= set(dtypes):
        head.append("int4 / int8")
    limits = (
        f"Limits: {result['bandwidth_gb_s']:.1f} GB/s read,"
        f" {result['multiply_adds_g_s']:.0f} G multiply-adds of bytes a second, both measured."
        " In brackets the share of the limit."
    )
    return markdown(head, rows, 0) + "\n\n" + limits


def pass_cost(result: Result) -> str:
    """Milliseconds of a pass and their ratio to one row, by format."""
    dtypes = list(result["results"])
    rows = []
    for count in result["results"][dtypes[0]]["milliseconds"]:
        cells = [count]
        for dtype in dtypes:
            times = result["results"][dtype]["milliseconds"]
            cells += [
                figure(times[count]["median"], 1),
                figure(times[count]["median"] / times["1"]["median"], 2),
            ]
        rows.append(cells)
    head = ["rows", *(cell for dtype in dtypes for cell in (f"{dtype}, ms", "ratio"))]
    return markdown(head, rows, 0)


def linear_kernels(result: Result) -> str:
    """Milliseconds of products by kernel."""
    shown = ("1", "4", "16", "64")
    rows = [
        [
            name,
            *(figure(entry["milliseconds"][n], 1) for n in shown),
            "yes" if entry["rows_independent"] else "no",
        ]
        for name, entry in result["results"].items()
    ]
    head = ("weights", *(f"{n} row{'s' * (n != '1')}, ms" for n in shown), "rows independent")
    return markdown(head, rows)


def large_shapes(result: Result) -> str:
    """Milliseconds of passes of large models' shapes."""
    rows = []
    for entry in result["results"]:
        times = entry["milliseconds"]
        cells = [
            f"{t['median']:.0f} ({t['median'] / times['1']['median']:.2f})" for t in times.values()
        ]
        rows.append(
            [
                entry["model"].upper(),
                *cells,
                figure(entry["megabytes"]["held"]),
                figure(entry["megabytes"]["peak"]),
            ]
        )
    counts = list(result["results"][0]["milliseconds"])
    head = (
        "model",
        *(f"{n} row{'s' * (n != '1')}, ms (ratio)" for n in counts),
        "held, MB",
        "while loading, MB",
    )
    return markdown(head, rows)


def contention(result: Result) -> str:
    """Tokens a second beside busy programs."""
    found = {(r["engine"], r["threads"], r["busy"]): r for r in result["rows"]}
    levels = sorted({busy for _, _, busy in found})
    rows = []
    for engine, threads in dict.fromkeys((e, t) for e, t, _ in found):
        cells = []
        for busy in levels:
            row = found[engine, threads, busy]
            cells.append(
                figure(row["tokens_per_second"]) + (f" ({row['ratio']:.2f})" if busy else "")
            )
        rows.append(
            [engine.replace("-", " ", 1), "default" if threads is None else str(threads), *cells]
        )
    head = ("engine", "threads", *("alone" if not busy else f"{busy} busy" for busy in levels))
    return markdown(head, rows, 2)


def start(result: Result) -> str:
    """Seconds and memory from the start of a process to its first token."""
    rows = [
        [
            name,
            figure(entry["file_mb"]),
            figure(entry["cold_s"], 1),
            figure(entry["warm_s"], 1),
            figure(entry["peak_mb"]),
            figure(entry["peak_to_file"], 2),
        ]
        for name, entry in result["starts"].items()
    ]
    return markdown(("start", "file, MB", "cold, s", "warm, s", "peak, MB", "peak / file"), rows)


def serve(result: Result) -> str:
    """The server under load."""
    rows = []
    for row in result["load"]:
        times = [figure(row[kind][i]) for kind in ("ttft_ms", "burst_ttft_ms") for i in (0, 1)]
        rate = figure(row["tokens_per_second"])
        rows.append(
            [row["server"].replace("-", " ", 1), row["mode"], str(row["clients"]), rate, *times]
        )
    head = (
        "server",
        "mode",
        "clients",
        "tok/s",
        "TTFT p50, ms",
        "p95",
        "at once: TTFT p50, ms",
        "p95",
    )
    return markdown(head, rows, 2)


def overhead(result: Result) -> str:
    """What the server costs beside its engine."""
    rows = [
        [
            row["mode"],
            figure(row["engine_tokens_per_second"]),
            figure(row["server_tokens_per_second"]),
            f"{row['overhead']:.1%}",
            f"{min(row['overhead_of_rounds']):.1%} to {max(row['overhead_of_rounds']):.1%}",
        ]
        for row in result["overhead"]
    ]
    return markdown(("mode", "engine, tok/s", "server, tok/s", "overhead", "rounds"), rows)


def bench(result: Result) -> str:
    """What `trimode bench` measured."""
    rows = []
    for row in result["settings"]:
        if "tokens_per_second" not in row:
            rows.append([row["way"], str(row["concurrency"]), "", "given up", "", "0"])
            continue
        speedup = row.get("speedup")
        shown = (
            f"{speedup['estimate']:.2f} ({speedup['low']:.2f} to {speedup['high']:.2f})"
            if speedup
            else "1"
        )
        rate = figure(row["tokens_per_second"]["estimate"])
        rows.append(
            [
                row["way"],
                str(row["concurrency"]),
                rate,
                shown,
                figure(row["tokens_per_forward"], 2),
                str(row["prompts"]),
            ]
        )
    head = ("setting", "requests", "tok/s", "times `ar`", "tokens a pass", "prompts")
    return markdown(head, rows)


def dtype_quality(result: Result) -> str:
    """Quality of formats against fp32."""
    rows = [
        [
            name,
            figure(f["perplexity_ratio"], 4),
            figure(f["agreement"], 3),
            figure(f["divergence"], 4),
        ]
        for name, f in result["formats"].items()
        if name != "fp32"
    ]
    return markdown(("format", "perplexity ratio", "agreement", "divergence, nats"), rows)


def memory(result: Result) -> str:
    """Resident memory by requests answered."""
    shown = [s for s in result["samples"] if s["requests"] in (0, 1000, 2000, 5000, 10000)]
    rows = [
        ["resident, MB", *(figure(s["rss_mb"]) for s in shown)],
        ["of which the KV pool", *(figure(s["kv_pool_mb"]) for s in shown)],
    ]
    return markdown(("requests", *(f"{s['requests']:,}" for s in shown)), rows)


def lossless() -> str:
    """All runs that compared answers with `ar`'s."""
    rows = []
    for path in sorted(RESULTS.glob("*/lossless_*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        dtype = path.stem.split("_")[1]
        compared = sum(run["prompts"] for run in result["runs"])
        flips = sum(len(run["flips"]) for run in result["runs"])
        rows.append(
            [
                dtype,
                NAMES[path.parent.name],
                f"{result['temperature']:g}",
                f"{result['prompts']:,} x {result['max_tokens']}",
                f"{compared:,}",
                str(flips),
            ]
        )
    head = (
        "format",
        "machine",
        "temperature",
        "prompts x tokens",
        "answers compared",
        "that differ",
    )
    return markdown(head, rows, 2)


def edits(result: Result) -> str:
    """`auto` with a prediction beside `ar`."""
    rows = [
        [
            f"{row['edited']:.0%}",
            figure(row["ar_tokens_per_second"]),
            figure(row["auto_tokens_per_second"]),
            f"{row['ratio']:.2f} ({row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f})",
            figure(row["tokens_per_forward"], 1),
        ]
        for row in result["rows"]
    ]
    head = ("edits begin at", "`ar`, tok/s", "`auto`, tok/s", "ratio (quartiles)", "tokens a pass")
    return markdown(head, rows, 0)


def likeliest(result: Result) -> str:
    """Likeliest tokens out of half of the head, beside all logits, by kernels and rows."""
    kinds = list(result["head"])
    rows = [
        [
            count,
            *(
                f"{one['logits_ms']:.2f}, {one['likeliest_ms']:.2f} ({one['ratio']:.2f})"
                for one in (result["head"][kind][count] for kind in kinds)
            ),
        ]
        for count in result["head"][kinds[0]]
    ]
    table = markdown(("rows", *(f"{kind}, ms" for kind in kinds)), rows, 0)
    strips, gains = result["strips"], result["decoding"]
    left = strips["left"]
    said = "; ".join(
        f"`{mode}` {of['gain']:.2f} times as fast as without, quartiles "
        f"{of['quartiles'][0]:.2f} and {of['quartiles'][1]:.2f}, "
        f"{of['equal']} of {of['answers']} answers equal"
        for mode, of in gains.items()
    )
    return (
        f"{table}\n\nOf {strips['all']} strips are computed in full: {left['median']} in the "
        f"median, {left['p90']} at the 90th percentile, {left['mean']:.0f} on average of "
        f"{strips['rows']} rows. Decoding: {said}."
    )


def recommendation(result: Result) -> str:
    """What `trimode bench` recommends by the kind of work, beside the best of all settings."""
    rows = []
    for kind, row in result["kinds"].items():
        rates = row["tokens_per_second"]
        rows.append(
            [
                kind,
                row["recommended"],
                row["best"],
                figure(rates["ar"]),
                figure(rates[row["recommended"]]),
                figure(rates[row["best"]]),
                figure(row["ratio"], 3),
            ]
        )
    head = ("work", "recommended", "best", "`ar`, tok/s", "recommended", "best", "of the best")
    return markdown(head, rows, 3)


BUILDERS: dict[str, Callable[[Any], str]] = {
    "engines": engines,
    "roofline": roofline,
    "pass_cost": pass_cost,
    "linear_kernels": linear_kernels,
    "large_shapes": large_shapes,
    "contention": contention,
    "start": start,
    "serve": serve,
    "overhead": overhead,
    "bench": bench,
    "edits": edits,
    "likeliest": likeliest,
    "dtype_quality": dtype_quality,
    "memory": memory,
    "recommendation": recommendation,
}
"""By the result's name up to the first underscore that makes it one of these."""
SUMMARIES: dict[str, Callable[[], str]] = {"decision": decision, "lossless": lossless}
"""Tables of several results."""


def table(name: str) -> str:
    """The table of a marker, with the command that made its result."""
    if name in SUMMARIES:
        return SUMMARIES[name]()
    kind, _, rest = name.partition("/")
    result = read(name)
    builder = next(
        (b for key, b in BUILDERS.items() if rest == key or rest.startswith(f"{key}_")), None
    )
    if kind not in KINDS or result is None or builder is None:
        raise SystemExit(f"docs/benchmarks.md: {name} is no result of benchmarks/results")
    return "\n\n".join([builder(result), *(f"`{command}`" for command in commands(result))])


def commands(result: Result) -> list[str]:
    """The commands that made a result: one, or one of each kind of work."""
    if "kinds" in result:
        return list(dict.fromkeys(row["command"] for row in result["kinds"].values()))
    return [result.get("command") or result["header"]["command"]]


def filled(text: str) -> str:
    """The page with all tables as the results have them."""
    return TABLE.sub(lambda m: f"<!-- table {m[1]} -->\n\n{table(m[1])}\n\n<!-- end -->", text)


def plots() -> None:
    """Three pictures: who is how fast at one request and at sixteen, and what rows cost."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = {kind: result for kind in KINDS if (result := read(f"{kind}/engines"))}
    for load in (1, 16):
        figure_, axes = plt.subplots(
            1, len(found), figsize=(4 * len(found), 3.4), layout="constrained", sharex=True
        )
        for axis, (kind, result) in zip(axes, found.items(), strict=True):
            rate_bars(axis, [r for r in result["rows"] if r["concurrency"] == load], NAMES[kind])
        figure_.savefig(PICTURES / f"benchmarks_{load}.png", dpi=110)
        plt.close(figure_)
    figure_, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
        for dtype, times in _passes(kind).items():
            rows, ratios = zip(*sorted((n, t / times[1]) for n, t in times.items()), strict=True)
            axis.plot(
                rows, ratios, style, marker="o", markersize=3, label=f"{NAMES[kind]}, {dtype}"
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set(xlabel="rows of a pass", ylabel="time / time of one row")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure_.savefig(PICTURES / "benchmarks_rows.png", dpi=110)
    plt.close(figure_)


def _passes(kind: str) -> dict[str, dict[int, float]]:
    """Milliseconds of a pass by format and rows."""
    result, found = read(f"{kind}/roofline"), dict[str, dict[int, float]]()
    for entry in result["passes"] if result else ():
        found.setdefault(entry["dtype"], {})[entry["rows"]] = entry["milliseconds"]["pass"]
    if not found and (older := read(f"{kind}/pass_cost")):
        times = older["results"]["int8"]["milliseconds"]
        found["int8"] = {int(n): t["median"] for n, t in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail if a table differs"
    )
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    wanted = filled(text)
    if arguments.check:
        different = [
            m[1]
            for m, n in zip(TABLE.finditer(text), TABLE.finditer(wanted), strict=True)
            if m[0] != n[0]
        ]
        if different:
            sys.exit(
                f"differ from their results: {', '.join(different)}; run python benchmarks/page.py"
            )
        return
    PAGE.write_text(wanted, encoding="utf-8")
    plots()


if __name__ == "__main__":
    main()
