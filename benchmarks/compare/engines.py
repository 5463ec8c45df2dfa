"""Ours against llama.cpp and transformers: the same prompts, machine and client, in one run.

    python benchmarks/compare/engines.py --data data [--dtypes int8 int4] [--concurrency 1 16]
        [--rounds 3] [--prompts 6] [--max-tokens 128] [--modes ar auto ngram_mod]
    python benchmarks/compare/engines.py --model DIR [--adapter DIR] --prompt-file FILE.jsonl

A round measures each engine and mode once, in an order that alternates from round to round. Tokens
a second: completion tokens of all requests / time from the first request to the last answer. TPOT:
(last text - first text) / (tokens - 1), without reading the prompt. Figures are medians over the
rounds. The ratio is that of the rates of one round, to the first engine's `ar` at as many requests.

Each measurement starts a server process (for transformers, a worker that takes the requests of a
moment as one batch) and warms it up with three other prompts in the measured mode. So all answer
the same prompts, and none has seen them before: servers remember prompts, and some draft from
answers they remember. No idle process shares the cores or the memory figures.

With --model or --adapter only our engines are measured, and llama.cpp if the model is a GGUF file
(`llama-file`). --prompt-file gives prompts of the task that a model was made for: JSONL with a
`prompt` a line.

llama.cpp is `xllamacpp` (pip install xllamacpp), on the built-in model's GGUF in each format that
`benchmarks/lib/gguf_files.py` makes with llama.cpp's own quantiser.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib.clients import ClientLoad, measure, percentile
from benchmarks.lib.machine import header, results, save
from benchmarks.lib.peers import LLAMA_FILE, OURS, PEERS, HttpEngine, Mode, modes_of, start
from benchmarks.lib.plots import rate_bars
from benchmarks.lib.prompts import prompt_sets

WARM_UP_PROMPTS, WARM_UP_TOKENS = 3, 48


@dataclass
class Measured:
    """One engine in one mode at one concurrency, over the rounds."""

    rates: list[float] = field(default_factory=list)
    times: ClientLoad = field(default_factory=ClientLoad)
    memory: float = 0.0


def measure_warm(
    engine: HttpEngine,
    prompts: list[str],
    max_tokens: int,
    mode: Mode,
    together: int,
    entry: Measured,
) -> float:
    """Warm up with the last prompts, measure the others; returns tokens a second."""
    warm_up, asked = prompts[-WARM_UP_PROMPTS:], prompts[:-WARM_UP_PROMPTS]
    measure(engine, warm_up, min(WARM_UP_TOKENS, max_tokens), mode.request, together)
    found = measure(engine, asked, max_tokens, mode.request, together)
    entry.rates.append(found.rate)
    entry.times += found
    entry.memory = max(entry.memory, engine.megabytes("VmHWM"))
    return found.rate


def prompts_for(arguments: argparse.Namespace) -> list[str]:
    """As many as the widest measurement asks for. The last ones are for warming up."""
    count = max(arguments.prompts, *arguments.concurrency) + WARM_UP_PROMPTS
    if arguments.prompt_file:
        lines = arguments.prompt_file.read_text().splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    elif arguments.data:
        sets = prompt_sets(arguments.data, -(-count // 3))
        prompts = [text for group in zip(*sets.values(), strict=True) for text in group]
    else:
        raise SystemExit("--data or --prompt-file is needed")
    if len(prompts) < count:
        raise SystemExit(f"{len(prompts)} prompts, {count} are needed")
    return prompts[:count]


def engines_for(arguments: argparse.Namespace) -> list[str]:
    """The engines asked for, or all that can load the model."""
    ours = [f"{OURS}-{dtype}" for dtype in arguments.dtypes]
    theirs = list(PEERS)
    if arguments.model or arguments.adapter:
        theirs = [LLAMA_FILE] if str(arguments.model).endswith(".gguf") else []
    chosen = arguments.only or [*ours, *theirs]
    unknown = [n for n in chosen if not n.startswith(f"{OURS}-") and n not in theirs]
    if unknown:
        allowed = ", ".join([f"{OURS}-DTYPE", *theirs])
        raise SystemExit(f"--only: {', '.join(unknown)}; here it may be {allowed}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--prompt-file", type=Path)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", default=["int8"], help="of our engines")
    parser.add_argument("--only", nargs="+", help="engines, such as trimode-int8 or llama-Q4_K_M")
    parser.add_argument("--modes", nargs="+", help="of all that the engines offer")
    parser.add_argument("--model", help="what is loaded instead of the built-in model")
    parser.add_argument("--adapter", help="what our engines load with it, a directory or none")
    parser.add_argument("--name", default="engines")
    arguments = parser.parse_args()
    console = Console()
    prompts = prompts_for(arguments)
    warm_up = prompts[-WARM_UP_PROMPTS:]
    work = [
        (name, mode, together)
        for together in arguments.concurrency
        for name in engines_for(arguments)
        for mode in modes_of(name)
        if together == 1 or not mode.alone
        if arguments.modes is None or mode.name in arguments.modes
    ]
    found: dict[tuple[str, str, int], Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        for round_number in range(arguments.rounds):
            for name, mode, together in work if round_number % 2 == 0 else work[::-1]:
                asked = prompts[: max(arguments.prompts, together)] + warm_up
                entry = found.setdefault((name, mode.name, together), Measured())
                engine = start(
                    name,
                    together,
                    Path(folder),
                    server=mode.server,
                    model=arguments.model,
                    adapter=arguments.adapter,
                )
                try:
                    rate = measure_warm(engine, asked, arguments.max_tokens, mode, together, entry)
                finally:
                    engine.close()
                console.print(f"{name} {mode.name} x{together}: {rate:.1f} tok/s", highlight=False)
    report(console, arguments, found)


def report(
    console: Console,
    arguments: argparse.Namespace,
    found: dict[tuple[str, str, int], Measured],
) -> None:
    """Table, JSON and plot."""
    rows = []
    table = Table(title=f"{arguments.max_tokens} tokens at most, T 0, {arguments.rounds} rounds")
    columns = ("engine", "mode", "requests", "tok/s", "least..most", "ratio", "TTFT ms p50 / p95",
               "gap ms p50 / p95", "TPOT ms p50 / p95", "peak MB")  # fmt: skip
    for column in columns:
        table.add_column(column)
    for (name, mode, together), entry in sorted(found.items(), key=lambda item: item[0][2]):
        row = {
            "engine": name,
            "mode": mode,
            "concurrency": together,
            "tokens_per_second": round(statistics.median(entry.rates), 1),
            "least": round(min(entry.rates), 1),
            "most": round(max(entry.rates), 1),
            "ratio": _ratio(found, name, mode, together),
            "ttft_ms": [round(percentile(entry.times.first, p), 1) for p in (0.5, 0.95)],
            "gap_ms": [round(percentile(entry.times.gaps, p), 1) for p in (0.5, 0.95)],
            "tpot_ms": [round(percentile(entry.times.per_token, p), 2) for p in (0.5, 0.95)],
            "answer_tokens": entry.times.tokens // len(entry.rates),
            "peak_megabytes": round(entry.memory),
        }
        rows.append(row)
        table.add_row(
            name,
            mode,
            str(together),
            f"{row['tokens_per_second']:g}",
            f"{row['least']:g}..{row['most']:g}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            " / ".join(f"{v:g}" for v in row["ttft_ms"]),
            " / ".join(f"{v:g}" for v in row["gap_ms"]),
            " / ".join(f"{v:g}" for v in row["tpot_ms"]),
            f"{row['peak_megabytes']}",
        )
    console.print(table)
    asked = {
        "model": arguments.model or "smollm2-135m-instruct",
        "max_tokens": arguments.max_tokens,
        "rounds": arguments.rounds,
    }
    save(arguments.name, {**header(), **asked, "rows": rows})
    plot(rows, results() / arguments.name)


def _ratio(
    found: dict[tuple[str, str, int], Measured], name: str, mode: str, together: int
) -> float | None:
    """Median over the rounds of a rate's ratio to the first engine's `ar`, if that was measured."""
    first = next(iter(found))[0]
    base = found.get((first, "ar", together))
    if base is None:
        return None
    rates = zip(found[name, mode, together].rates, base.rates, strict=True)
    return round(statistics.median(rate / reference for rate, reference in rates), 3)


def plot(rows: list[dict], path: Path) -> None:
    """Tokens a second by engine and mode, one panel a concurrency."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    levels = sorted({row["concurrency"] for row in rows})
    figure, axes = plt.subplots(1, len(levels), figsize=(4.4 * len(levels), 4.6), squeeze=False)
    for axis, level in zip(axes[0], levels, strict=True):
        rate_bars(axis, [row for row in rows if row["concurrency"] == level], f"{level} at once")
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
