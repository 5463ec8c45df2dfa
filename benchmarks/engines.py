"""Ours against llama.cpp and transformers: the same prompts, machine and client, in one run.

    python benchmarks/engines.py --data ../shared/data [--concurrency 1 4 16] [--rounds 3]
        [--prompts 6] [--max-tokens 128] [--only trimode-int8 llama-Q8_0]

Every engine is a server process of its own (transformers: a worker that answers one request at a
time), all started first and idle while another is measured. A round measures each engine and mode
once, in an order that alternates from round to round. Tokens a second: completion tokens of all
requests / time from the first request to the last answer. Medians over the rounds.

llama.cpp is `xllamacpp` (pip install xllamacpp), on the built-in model's own Q4_1 GGUF and on a
Q8_0 made of it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conversion import read_prompts
from machine import RESULTS, header, save
from rich.console import Console
from rich.table import Table
from servers import HttpEngine, measure, percentile, start_server

from trimode.checkpoints import resolve

MODES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "trimode-int8": [
        ("ar", {"mode": "ar"}),
        ("linear 5", {"mode": "linear", "block_length": 5}),
        ("quadratic 2", {"mode": "quadratic", "block_length": 2}),
        ("diffusion 8", {"mode": "diffusion", "block_length": 8}),
        ("auto", {"mode": "auto"}),
    ],
    "trimode-bf16": [
        ("ar", {"mode": "ar"}),
        ("linear 8", {"mode": "linear", "block_length": 8}),
        ("auto", {"mode": "auto"}),
    ],
    "trimode-fp32": [
        ("ar", {"mode": "ar"}),
        ("linear 8", {"mode": "linear", "block_length": 8}),
        ("auto", {"mode": "auto"}),
    ],
    "llama-Q8_0": [("ar", {})],
    "llama-Q4_1": [("ar", {})],
    "transformers-fp32": [("ar", {})],
    "transformers-bf16": [("ar", {}), ("prompt lookup", {"prompt_lookup_num_tokens": 8})],
}
ONE_AT_A_TIME = ("transformers-fp32", "transformers-bf16")


@dataclass
class Measured:
    """One engine in one mode at one concurrency, over the rounds."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


class PipeEngine(HttpEngine):
    """transformers' `generate` in a process that reads requests as lines."""

    def __init__(self, dtype: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--transformers", dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def ask(self, prompt: str, max_tokens: int, decoding: dict) -> tuple[int, list[float]]:
        """As for a server."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        asked = {"prompt": prompt, "max_tokens": max_tokens, **decoding}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        return found["tokens"], found["times"]


def serve_transformers(dtype: str) -> None:
    """Answer requests on stdin until it ends."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.generation.streamers import BaseStreamer

    path = resolve("smollm2-135m-instruct").path
    tokenizer = AutoTokenizer.from_pretrained(path)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=kind)

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.began, self.times = time.perf_counter(), []

        def put(self, value: Any) -> None:
            del value
            self.times.append(time.perf_counter() - self.began)

        def end(self) -> None:
            pass

    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        messages = [{"role": "user", "content": asked.pop("prompt")}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        clock = Clock()
        streams = {} if "prompt_lookup_num_tokens" in asked else {"streamer": clock}
        found = model.generate(
            **inputs, max_new_tokens=asked.pop("max_tokens"), do_sample=False, **streams, **asked
        )
        tokens = found.shape[1] - inputs["input_ids"].shape[1]
        times = clock.times[1:] or [time.perf_counter() - clock.began]  # the first is the prompt
        print(json.dumps({"tokens": tokens, "times": times}), flush=True)


def start(name: str, slots: int, folder: Path) -> HttpEngine:
    """Start an engine by name."""
    family, kind = name.split("-")
    return PipeEngine(kind) if family == "transformers" else start_server(name, slots, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--only", nargs="+", default=list(MODES))
    parser.add_argument("--name", default="engines")
    parser.add_argument("--transformers", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.transformers:
        serve_transformers(arguments.transformers)
        return
    console = Console()
    slots = max(arguments.concurrency)
    count = max(arguments.prompts, slots)
    sets = read_prompts(arguments.data, -(-count // 3))
    prompts = [text for group in zip(*sets.values(), strict=True) for text in group]
    found: dict[tuple[str, str, int], Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: start(name, slots, Path(folder)) for name in arguments.only}
        try:
            for name, engine in engines.items():
                for _, decoding in MODES[name]:
                    engine.ask("Say hello.", 4, decoding)
            work = [
                (name, mode, decoding, together)
                for together in arguments.concurrency
                for name in arguments.only
                for mode, decoding in MODES[name]
                if together == 1 or name not in ONE_AT_A_TIME
            ]
            for round_number in range(arguments.rounds):
                for name, mode, decoding, together in work if round_number % 2 == 0 else work[::-1]:
                    asked = prompts[: max(arguments.prompts, together)]
                    load = measure(engines[name], asked, arguments.max_tokens, decoding, together)
                    entry = found.setdefault((name, mode, together), Measured())
                    entry.rates.append(load.rate)
                    entry.first += load.first
                    entry.gaps += load.gaps
                    shown = f"{name} {mode} x{together}: {load.rate:.1f} tok/s"
                    console.print(shown, highlight=False)
            memory = {name: engine.megabytes("VmHWM") for name, engine in engines.items()}
        finally:
            for engine in engines.values():
                engine.close()
    report(console, arguments, found, memory)


def report(
    console: Console,
    arguments: argparse.Namespace,
    found: dict[tuple[str, str, int], Measured],
    memory: dict[str, float],
) -> None:
    """Table, JSON and plot."""
    rows = []
    table = Table(title=f"{arguments.max_tokens} tokens at most, T 0, {arguments.rounds} rounds")
    columns = ("engine", "mode", "requests", "tok/s", "least..most", "TTFT ms p50 / p95",
               "gap ms p50 / p95", "peak MB")  # fmt: skip
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
            "ttft_ms": [round(percentile(entry.first, p), 1) for p in (0.5, 0.95)],
            "gap_ms": [round(percentile(entry.gaps, p), 1) for p in (0.5, 0.95)],
            "peak_megabytes": round(memory[name]),
        }
        rows.append(row)
        table.add_row(
            name,
            mode,
            str(together),
            f"{row['tokens_per_second']:g}",
            f"{row['least']:g}..{row['most']:g}",
            " / ".join(f"{v:g}" for v in row["ttft_ms"]),
            " / ".join(f"{v:g}" for v in row["gap_ms"]),
            f"{row['peak_megabytes']}",
        )
    console.print(table)
    asked = {"max_tokens": arguments.max_tokens, "rounds": arguments.rounds}
    save(arguments.name, {**header(), **asked, "rows": rows})
    plot(rows, RESULTS / arguments.name)


def plot(rows: list[dict], path: Path) -> None:
    """Tokens a second by engine and mode, one panel a concurrency."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    levels = sorted({row["concurrency"] for row in rows})
    figure, axes = plt.subplots(1, len(levels), figsize=(4.4 * len(levels), 4.6), squeeze=False)
    for axis, level in zip(axes[0], levels, strict=True):
        chosen = [row for row in rows if row["concurrency"] == level][::-1]
        names = [f"{row['engine']} {row['mode']}" for row in chosen]
        rates = [row["tokens_per_second"] for row in chosen]
        ours = ["tab:blue" if row["engine"].startswith("trimode") else "0.6" for row in chosen]
        axis.barh(names, rates, color=ours)
        axis.bar_label(axis.containers[0], fmt="%.0f", padding=2, fontsize=8)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_title(f"{level} at once")
        axis.set_xlabel("tokens / s")
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
