"""Memory of an engine at rest, and whether it grows over thousands of requests.

    python benchmarks/cost/memory.py [--requests 10000] [--every 500] [--kv-cache-mb 256]

At rest: what the process holds after loading, less what an interpreter with PyTorch holds. The
target is 1.3 times the weights and the KV pool. Resident memory counts the pages of PyTorch's
libraries that a pass touches. Private memory does not, since processes share these pages.

Growth: one engine answers short requests of all modes, sixteen at a time. Memory is read each time
that a whole batch is answered. The slope leaves out the first fifth, in which the KV pool fills.
Linux only.

Writes benchmarks/results/MACHINE/memory.json.
"""

import argparse
import subprocess
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.machine import header, megabytes, save, weight_bytes
from trimode import Engine, GenerationOptions, LoadedModel, load
from trimode.engine import drain, encode_prompt
from trimode.model import KVCache

TARGET = 1.3
BASELINE = """
import torch
with open("/proc/self/status") as file:
    fields = dict(line.split(":", 1) for line in file)
print(fields["VmRSS"].split()[0], fields["RssAnon"].split()[0])
"""
OPTIONS: list[dict[str, Any]] = [
    {"mode": "ar"},
    {"mode": "linear", "block_length": 5},
    {"mode": "quadratic", "block_length": 2},
    {"mode": "diffusion", "block_length": 8},
    {"mode": "auto"},
    {"mode": "linear", "block_length": 16, "temperature": 0.8},
    {"mode": "ar", "temperature": 0.8, "logprobs": 2},
]


def kv_megabytes(engine: Engine) -> float:
    """Caches that the pool holds, lent or remembered."""
    model = engine.model
    token = KVCache.bytes_per_token(model.config, model.runner.kv_dtype)
    return engine.pool.tokens_held * token / 2**20


def at_rest(engine: Engine) -> dict[str, Any]:
    """An engine that has answered one request."""
    run = [sys.executable, "-c", BASELINE]
    found = subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()
    interpreter, its_own = (int(kilobytes) / 1024 for kilobytes in found)
    engine.add(encode_prompt(engine.model, "Say hello."), GenerationOptions(max_tokens=4))
    for _ in drain(engine):
        pass
    held, private = megabytes("VmRSS") - interpreter, megabytes("RssAnon") - its_own
    weights, cache = weight_bytes(engine.model.transformer) / 2**20, kv_megabytes(engine)
    return {
        "interpreter_mb": round(interpreter, 1),
        "engine_mb": round(held, 1),
        "private_mb": round(private, 1),
        "weights_mb": round(weights, 1),
        "kv_pool_mb": round(cache, 1),
        "peak_of_loading_mb": round(megabytes("VmHWM") - interpreter, 1),
        "ratio": round(held / (weights + cache), 2),
        "private_ratio": round(private / (weights + cache), 2),
        "target": TARGET,
    }


def growth(model: LoadedModel, engine: Engine, requests: int, every: int) -> dict[str, Any]:
    """Memory by requests answered, and its slope."""
    samples = [{"requests": 0, "rss_mb": round(megabytes("VmRSS"), 2), "kv_pool_mb": 0.0}]
    batches = range(0, requests, every)
    for start in track(batches, "requests", console=Console(stderr=True), transient=True):
        for i in range(start, min(start + every, requests)):
            options = GenerationOptions(max_tokens=4, seed=i, **OPTIONS[i % len(OPTIONS)])
            engine.add(encode_prompt(model, f"Tell me about the number {i}."), options)
        for _ in drain(engine):
            pass
        samples.append(
            {
                "requests": min(start + every, requests),
                "rss_mb": round(megabytes("VmRSS"), 2),
                "kv_pool_mb": round(kv_megabytes(engine), 1),
            }
        )
    settled = [s for s in samples if s["requests"] >= requests / 5]
    slope = None
    if len(settled) > 1:
        counts = [s["requests"] / 1000 for s in settled]
        slope = round(float(np.polyfit(counts, [s["rss_mb"] for s in settled], 1)[0]), 3)
    return {"samples": samples, "mb_per_1000_requests": slope}


def show(rest: dict[str, Any], grown: dict[str, Any]) -> None:
    """Two tables."""
    console = Console()
    table = Table("at rest", "MB", title="memory of one engine")
    for name in ("interpreter", "engine", "private", "weights", "kv_pool", "peak_of_loading"):
        table.add_row(name.replace("_", " "), f"{rest[f'{name}_mb']:g}")
    console.print(table)
    verdict = "met" if rest["ratio"] <= TARGET else "missed"
    console.print(
        f"engine / (weights + KV pool): {rest['ratio']}; target {TARGET}: {verdict}; "
        f"private memory alone: {rest['private_ratio']}",
        highlight=False,
    )
    table = Table("requests", "RSS, MB", "of it KV pool, MB")
    for sample in grown["samples"]:
        table.add_row(*(f"{value:g}" for value in sample.values()))
    console.print(table)
    console.print(f"slope: {grown['mb_per_1000_requests']} MB per 1,000 requests", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--kv-cache-mb", type=int, default=256)
    parser.add_argument("--name", default="memory")
    arguments = parser.parse_args()
    # int8: the format whose weights are all in tensors of ours, so that they can be counted.
    model = load(arguments.model, dtype="int8", progress=False)
    engine = Engine(model, kv_cache_bytes=arguments.kv_cache_mb * 2**20)
    rest = at_rest(engine)
    grown = growth(model, engine, arguments.requests, arguments.every)
    show(rest, grown)
    save(arguments.name, {**header(), "at_rest": rest, **grown})


if __name__ == "__main__":
    main()
