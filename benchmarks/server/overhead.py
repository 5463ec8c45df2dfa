"""What the server costs beside its engine alone, at many clients.

    python benchmarks/server/overhead.py --data data [--clients 16] [--rounds 6]
        [--seconds 10]

There is one engine, in one thread of one process. Clients in a closed loop keep the server busy.
Every second the engine puts their requests aside and works for a second on the same requests
without a server. A shared machine can change its speed by a tenth from one second to the next: so
it changes for both. In each round both have `--seconds` seconds.

Tokens a second: committed tokens / time. Overhead: 1 - the server's / the engine's, over all rounds
and for each round. Both sides ask the same few prompts: drafts are equally good for both, and the
cache always holds the prompt. Answers begin one after the other, as in a load that has run for a
while. The clients are a process on the same cores. The table lists what they take.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.clients import SERVED, ClientLoad, HttpClient
from benchmarks.lib.machine import header, save
from benchmarks.lib.prompts import mixed_prompts
from benchmarks.server.serve import MODES
from trimode import load
from trimode.config import GenerationOptions
from trimode.decoding import Committed
from trimode.engine import Engine, Sequence, Update, encode_prompt
from trimode.server import ServerSettings, freeze_memory, open_service
from trimode.server.runtime import EngineWorker
from trimode.testing.serving import running

TOKENS = 128
PROMPTS = 4
TURN = 1.0
"""Seconds of the server, then of the engine alone."""
SETTLING = 0.05
"""Of the engine's turn, in which the server still sends what it has: not counted for either."""


@dataclass
class Counted:
    """An engine that counts its tokens, whoever asked for them."""

    engine: Engine
    tokens: int = 0

    def __post_init__(self) -> None:
        step = self.engine.step

        def counted() -> list[Update]:
            updates = step()
            events = (update.event for update in updates)
            self.tokens += sum(len(e.tokens) for e in events if isinstance(e, Committed))
            return updates

        self.engine.step = counted  # type: ignore[method-assign]


@dataclass
class Alone:
    """Requests of the engine's own, which wait while the server's run."""

    counted: Counted
    add: Callable[[int], Sequence]
    """Queue one with that many tokens at most."""
    live: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)
    begun: int = 0
    ended: tuple[int, float] = (0, 0.0)
    """Tokens and time at the end of the last turn, when the server's began."""

    def turn(self, seconds: float) -> tuple[ClientLoad, ClientLoad]:
        """Work on them for a while, in the engine's thread.

        Returns tokens and time of the server's turn, which this ends, and of this one.
        """
        served = self._since(*self.ended)
        self._swap()
        self._run(SETTLING)
        own = self._run(seconds)
        self._swap()
        self.ended = self.counted.tokens, time.perf_counter()
        return served, own

    def _run(self, seconds: float) -> ClientLoad:
        engine, before, began = self.counted.engine, self.counted.tokens, time.perf_counter()
        while time.perf_counter() - began < seconds:
            while len(engine.live) + len(engine.waiting) < engine.max_sequences:
                self.begun += 1
                self.add(first_length(self.begun, engine.max_sequences))
            engine.step()
        return self._since(before, began)

    def _since(self, tokens: int, began: float) -> ClientLoad:
        return ClientLoad(time.perf_counter() - began, self.counted.tokens - tokens)

    def _swap(self) -> None:
        scheduler = self.counted.engine.scheduler
        scheduler.live, self.live = self.live, scheduler.live
        scheduler.waiting, self.waiting = self.waiting, scheduler.waiting


def first_length(number: int, together: int) -> int:
    """Tokens of a request: the first ones end one after the other."""
    return TOKENS * min(number, together) // together


def clients_of(url: str, prompts: list[str], decoding: dict, together: int, stop: Any) -> float:
    """Keep that many requests open until an event; returns the share of a core that this takes."""
    cpu, began = time.process_time(), time.perf_counter()
    client, numbers = HttpClient(url), itertools.count(1)

    def ask() -> None:
        while not stop.is_set():
            number = next(numbers)
            length = first_length(number, together)
            client.received(prompts[number % len(prompts)], length, decoding)

    with ThreadPoolExecutor(together) as pool:
        for asking in [pool.submit(ask) for _ in range(together)]:
            asking.result()
    return (time.process_time() - cpu) / (time.perf_counter() - began)


@contextmanager
def serving_here(dtype: str, max_sequences: int) -> Iterator[tuple[str, EngineWorker]]:
    """As `trimode serve`, in threads of this process: its address and its engine's thread."""
    settings = ServerSettings(
        name=SERVED, defaults=GenerationOptions(), max_sequences=max_sequences
    )
    service = open_service(settings, partial(load, dtype=dtype, progress=False))
    freeze_memory()
    with running(service) as server:
        yield server.url, service.worker


def overhead(
    url: str,
    worker: EngineWorker,
    counted: Counted,
    pool: ProcessPoolExecutor,
    stop: Any,
    prompts: list[str],
    mode: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """A row of the table."""
    decoding, together = MODES[mode], arguments.clients
    engine = worker.engine
    encoded = itertools.cycle([encode_prompt(engine.model, prompt) for prompt in prompts])

    def add(max_tokens: int) -> Sequence:
        asked = {**decoding, "max_tokens": max_tokens}
        return engine.add(next(encoded), GenerationOptions.from_mapping(asked))

    alone = Alone(counted, add)

    def turn(seconds: float) -> tuple[ClientLoad, ClientLoad]:
        return asyncio.run(worker.call(partial(alone.turn, seconds)))

    asking = pool.submit(clients_of, url, prompts, decoding, together, stop)
    while len(engine.live) < together:  # the first clients' process takes seconds to start
        time.sleep(0.1)
    time.sleep(arguments.warm_up)
    turn(arguments.warm_up)
    rounds = []
    for _ in track(range(arguments.rounds), f"overhead, {mode}", transient=True):
        served, bare = ClientLoad(), ClientLoad()
        for _ in range(round(arguments.seconds / TURN)):
            time.sleep(TURN)
            there, here = turn(TURN)
            served, bare = served + there, bare + here
        rounds.append((served, bare))
    stop.set()
    cores = asking.result()
    all_served, all_bare = (sum(side, ClientLoad()) for side in zip(*rounds, strict=True))
    return {
        "mode": mode,
        "clients": together,
        "engine_tokens_per_second": round(all_bare.rate, 1),
        "server_tokens_per_second": round(all_served.rate, 1),
        "overhead": round(1 - all_served.rate / all_bare.rate, 4),
        "overhead_of_rounds": [round(1 - s.rate / b.rate, 4) for s, b in rounds],
        "client_cores": round(cores, 3),
    }


def show(console: Console, rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(title="overhead of the server")
    columns = ("mode", "clients", "engine tok/s", "server tok/s", "overhead", "rounds", "clients")
    for column in columns:
        table.add_column(column)
    for row in rows:
        rates = [f"{row[f'{side}_tokens_per_second']:g}" for side in ("engine", "server")]
        each = sorted(row["overhead_of_rounds"])
        table.add_row(
            row["mode"],
            str(row["clients"]),
            *rates,
            f"{row['overhead']:.1%}",
            f"{each[0]:.1%} to {each[-1]:.1%}",
            f"{row['client_cores']:.2f} cores",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--name", default="overhead")
    arguments = parser.parse_args()
    if "GOMP_SPINCOUNT" not in os.environ:  # read when torch is loaded; the command sets it too
        os.environ["GOMP_SPINCOUNT"] = "20000"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    prompts = mixed_prompts(arguments.data, PROMPTS)
    context = multiprocessing.get_context("spawn")
    with (
        serving_here(arguments.dtype, arguments.clients) as (url, worker),
        ProcessPoolExecutor(1, context) as pool,
        context.Manager() as shared,
    ):
        counted = Counted(worker.engine)
        rows = [
            overhead(url, worker, counted, pool, shared.Event(), prompts, mode, arguments)
            for mode in arguments.modes
        ]
    show(Console(), rows)
    asked = {name: getattr(arguments, name) for name in ("rounds", "seconds")}
    save(arguments.name, {**header(), **asked, "overhead": rows})


if __name__ == "__main__":
    main()
