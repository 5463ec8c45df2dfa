"""How a pass slows down while another program keeps the cores busy.

    python benchmarks/cost/contention.py

An OpenMP thread that spins while it waits keeps the core from the thread it waits for. The pass is
timed with GNU OpenMP's default and with GOMP_SPINCOUNT=20000, which the `trimode` command sets: on
an idle machine, and beside one busy process a core.
"""

import os
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save

BUSY = "while True: pass"
REPEATS = 15


def child() -> None:
    """Time 1-row and 16-row passes and print the medians."""
    import torch

    from benchmarks.lib.passes import run
    from trimode import load
    from trimode.model import KVCache

    model = load(dtype="fp32", progress=False)
    runner, cache = model.runner, KVCache(model.config, 600)
    with torch.inference_mode():
        run(runner, cache, 256)
        cache.keep(range(256))
        for rows in (1, 16):
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                run(runner, cache, rows)
                times.append((time.perf_counter() - start) * 1e3)
            sys.stdout.write(f"{statistics.median(times):.1f}\n")


def measure(environment: dict[str, str], busy: int) -> list[float]:
    neighbours = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        result = subprocess.run(
            [sys.executable, __file__, "--child"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for neighbour in neighbours:
            neighbour.kill()
    return [float(line) for line in result.stdout.split()]


def main() -> None:
    cores = os.cpu_count() or 1
    table = Table("waiting", "other programs", "1 row, ms", "16 rows, ms")
    rows = []
    for name, environment in (
        ("spin (default)", {}),
        ("GOMP_SPINCOUNT=20000", {"GOMP_SPINCOUNT": "20000"}),
    ):
        for busy in (0, cores):
            one, sixteen = measure(environment, busy)
            rows.append({"waiting": name, "busy": busy, "one_row": one, "sixteen_rows": sixteen})
            table.add_row(name, str(busy), f"{one:.1f}", f"{sixteen:.1f}")
    info = header()
    Console().print(f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}")
    Console().print(table)
    save("contention", {**info, "results": rows})


if __name__ == "__main__":
    child() if "--child" in sys.argv else main()
