"""The server under load, ours in every mode and llama.cpp's; the page's first load.

    python benchmarks/server/serve.py --data data [--clients 1 4 16 64] [--requests 96]
        [--max-tokens 64] [--rounds 1] [--only trimode-int8 llama-Q8_0]

Each client sends a request, reads the stream to its end and sends the next. A load has at least
eight requests a client. Every load has a server that was just started and the same prompts, so the
cache holds nothing of a prompt except the common beginning. A burst comes before the load: one
other request of each client, all at the same moment. Its TTFT is listed beside the load's. The
clients of the load begin one after the other, over as many seconds as the burst took. Answers are
of one length, so clients that begin together stay together, and the load would be a row of bursts.

Tokens a second: completion tokens / time from the first request to the last answer, the median of
the rounds. TTFT: from sending a request to its first text, queue included. Gap: from a text to the
next; a text may be several tokens. TPOT: (last text - first text) / (tokens - 1). Percentiles are
over the requests of all rounds.

`overhead.py` measures what the server costs beside its engine alone.
"""

import argparse
import re
import statistics
import tempfile
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.clients import ClientLoad, measure, percentile
from benchmarks.lib.machine import header, save
from benchmarks.lib.peers import start
from benchmarks.lib.prompts import mixed_prompts

MODES: dict[str, dict[str, Any]] = {
    "ar": {"mode": "ar"},
    "linear 5": {"mode": "linear", "block_length": 5},
    "quadratic 2": {"mode": "quadratic", "block_length": 2},
    "diffusion 8": {"mode": "diffusion", "block_length": 8},
    "auto": {"mode": "auto"},
}
SHARES = (0.5, 0.95, 0.99)
REQUESTS_A_CLIENT = 8


def modes_of(name: str, chosen: list[str]) -> dict[str, dict[str, Any]]:
    """The modes of a server: the chosen ones for ours, AR for others."""
    if name.startswith("trimode"):
        return {mode: MODES[mode] for mode in chosen}
    return {"ar": {}}


def loads(prompts: list[str], folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each server, mode and number of clients."""
    work = [
        (name, mode, decoding, clients)
        for clients in arguments.clients
        for name in arguments.only
        for mode, decoding in modes_of(name, arguments.modes).items()
    ]
    pooled: dict[tuple[str, str, int], ClientLoad] = {}
    bursts: dict[tuple[str, str, int], list[float]] = {}
    rates: dict[tuple[str, str, int], list[float]] = {}
    turns = [w for r in range(arguments.rounds) for w in work[:: 1 if r % 2 == 0 else -1]]
    for name, mode, decoding, clients in track(turns, "loads", transient=True):
        count = max(arguments.requests, REQUESTS_A_CLIENT * clients)
        asked, fresh = prompts[:count], prompts[count : count + clients]
        with closing(start(name, max(clients, 16), folder)) as server:
            server.ask("Say hello.", 4, decoding)
            burst = measure(server, fresh, arguments.max_tokens, decoding, clients)
            found = measure(server, asked, arguments.max_tokens, decoding, clients, burst.seconds)
        key = (name, mode, clients)
        rates.setdefault(key, []).append(found.rate)
        pooled[key] = pooled.get(key, ClientLoad()) + found
        bursts.setdefault(key, []).extend(burst.first)
    rows = []
    for name, mode, _, clients in work:
        times, burst = pooled[name, mode, clients], bursts[name, mode, clients]
        rows.append(
            {
                "server": name,
                "mode": mode,
                "clients": clients,
                "tokens_per_second": round(statistics.median(rates[name, mode, clients]), 1),
                **{
                    f"{kind}_ms": [round(percentile(values, share), 2) for share in SHARES]
                    for kind, values in (
                        ("ttft", times.first),
                        ("gap", times.gaps),
                        ("tpot", times.per_token),
                        ("burst_ttft", burst),
                    )
                },
            }
        )
    return rows


def first_load(url: str) -> dict[str, Any]:
    """The page and everything it loads before a first question, one after the other."""
    waiting, seen, total = [url + "/", urljoin(url, "/props")], set[str](), 0
    began = time.perf_counter()
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        with urllib.request.urlopen(address) as answer:
            text = answer.read()
        total += len(text)
        if not address.endswith("/props"):
            found = re.findall(r"""(?:href|src|from)\s*=?\s*["']([^"':]+)["']""", text.decode())
            waiting += [urljoin(address, path) for path in found if "." in path]
    milliseconds = (time.perf_counter() - began) * 1e3
    return {"files": len(seen), "bytes": total, "milliseconds": round(milliseconds, 1)}


def show(console: Console, result: dict[str, Any]) -> None:
    """The tables."""
    table = Table(title="clients in a closed loop; times in ms, p50 / p95 / p99")
    for column in ("server", "mode", "clients", "tok/s", "TTFT", "TTFT in a burst", "gap", "TPOT"):
        table.add_column(column)
    kinds = ("ttft", "burst_ttft", "gap", "tpot")
    for row in result["load"]:
        times = [" / ".join(f"{v:.0f}" for v in row[f"{kind}_ms"]) for kind in kinds]
        rate = f"{row['tokens_per_second']:g}"
        table.add_row(row["server"], row["mode"], str(row["clients"]), rate, *times)
    console.print(table)
    if not result["page"]:
        return
    page = result["page"]
    console.print(f"page: {page['files']} files, {page['bytes']} bytes, {page['milliseconds']} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=["trimode-int8", "llama-Q8_0"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--name", default="serve")
    arguments = parser.parse_args()
    ours = next((name for name in arguments.only if name.startswith("trimode")), None)
    most = max(arguments.clients, default=0)
    prompts = mixed_prompts(
        arguments.data, max(arguments.requests, REQUESTS_A_CLIENT * most) + most
    )
    result: dict[str, Any] = {"page": {}}
    with tempfile.TemporaryDirectory() as folder:
        result["load"] = loads(prompts, Path(folder), arguments)
        if ours:
            with closing(start(ours, 16, Path(folder))) as server:
                result["page"] = first_load(server.url)
    show(Console(), result)
    asked = {name: getattr(arguments, name) for name in ("max_tokens", "rounds", "requests")}
    save(arguments.name, {**header(), **asked, **result})


if __name__ == "__main__":
    main()
