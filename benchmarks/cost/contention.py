"""How engines slow down while other programs keep the cores busy.

    python benchmarks/cost/contention.py [--dtypes int8] [--busy 0 1 2] [--rounds 3]
        [--only trimode-int8 llama-Q8_0]

Tokens a second of one request at a time in `ar`, prompt included, with the default threads and with
one thread. A measurement is a server of its own, which starts and answers a prompt before the other
programs begin: each of them counts without end. A round measures everything once, in an order that
alternates. Figures are medians over the rounds; the ratio to the engine alone is that of one round.

Writes benchmarks/results/MACHINE/contention.json.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib.clients import measure
from benchmarks.lib.machine import header, save
from benchmarks.lib.peers import OURS, modes_of, start

BUSY = "while True: pass"
WARM_UP = "Say hello in five words."
PROMPTS = (
    "Write three short sentences about the sea.",
    "What is the capital of France, and what is it known for?",
    "Explain to a child why the sky is blue.",
    "Write a function that adds the numbers of a list.",
)
LLAMA = ("llama-Q8_0", "llama-Q4_1")


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Busy programs, for as long as the block runs."""
    started = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def rate(name: str, threads: int | None, busy: int, max_tokens: int, folder: Path) -> float:
    """Tokens a second of an engine beside busy programs."""
    mode = next(mode for mode in modes_of(name) if mode.name == "ar")
    engine = start(name, 1, folder, server=mode.server, threads=threads)
    try:
        measure(engine, [WARM_UP], max_tokens, mode.request, 1)
        with neighbours(busy):
            return measure(engine, list(PROMPTS), max_tokens, mode.request, 1).rate
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["int8"], help="of our engines")
    parser.add_argument("--only", nargs="+", help="engines, such as trimode-int8 or llama-Q4_1")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=96)
    arguments = parser.parse_args()
    engines = arguments.only or [*(f"{OURS}-{dtype}" for dtype in arguments.dtypes), *LLAMA]
    levels = sorted({0, *arguments.busy})
    work = [(name, threads) for name in engines for threads in (None, 1)]
    found: dict[tuple[str, int | None, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for name, threads in work if number % 2 == 0 else work[::-1]:
                for busy in levels if number % 2 == 0 else levels[::-1]:
                    entry = found.setdefault((name, threads, busy), [])
                    entry.append(rate(name, threads, busy, arguments.max_tokens, Path(folder)))
    report(found, levels, arguments.rounds)


def report(
    found: dict[tuple[str, int | None, int], list[float]], levels: list[int], rounds: int
) -> None:
    """Table and JSON."""
    table = Table(title=f"tokens a second in ar, one request, {rounds} rounds (ratio to alone)")
    table.add_column("engine")
    table.add_column("threads")
    for busy in levels:
        table.add_column(f"{busy} busy" if busy else "alone", justify="right")
    rows = []
    for name, threads in dict.fromkeys((name, threads) for name, threads, _ in found):
        cells = []
        for busy in levels:
            rates, alone = found[name, threads, busy], found[name, threads, 0]
            ratio = statistics.median(a / b for a, b in zip(rates, alone, strict=True))
            row = {
                "engine": name,
                "threads": threads,
                "busy": busy,
                "tokens_per_second": round(statistics.median(rates), 1),
                "least": round(min(rates), 1),
                "most": round(max(rates), 1),
                "ratio": round(ratio, 3),
            }
            rows.append(row)
            cells.append(f"{row['tokens_per_second']:g}" + (f" ({ratio:.2f})" if busy else ""))
        table.add_row(name, "default" if threads is None else str(threads), *cells)
    info = header()
    Console().print(f"{info['cpu']}, {info['cores']} cores, torch {info['torch']}")
    Console().print(table)
    save("contention", {**info, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
