"""What a pass of NLD-3B and 8B costs here in int8: their shapes, random weights.

    python benchmarks/cost/large_shapes.py [--models 3b 8b] [--rows 1 8 16 32 64] [--repeats 5]

A pass runs over a cache of `--context` tokens, with the output head for every row. Its time does
not depend on the values of the weights. The script prints milliseconds, the ratio to one row, and
the memory that building the model took. It writes benchmarks/results/MACHINE/large_shapes.json.
The int8
weights are 3.8 GB for the 3B and 8.5 GB for the 8B. The embeddings stay bf16 and take as much
again.

The 3B's shapes are from a config of its base checkpoint. The 8B's are from its instruct checkpoint,
since its base config was not found. Heads and head_dim are those of Ministral 3, which both models
are made from. With these the published parameter counts come out.
"""

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.lib.machine import header, megabytes, save, weight_bytes
from benchmarks.lib.passes import run
from trimode.config import ModelConfig, RopeConfig
from trimode.model import KVCache, ReadTensor, build_runner, expected_tensors

LAYERS = {"3b": 26, "8b": 34}
SIZES = {
    "3b": {"hidden_size": 3072, "intermediate_size": 9216},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336},
}


def shape_of(name: str, layers: int | None) -> ModelConfig:
    """The published shape of a model, with fewer layers if asked for."""
    return ModelConfig(
        family="nemotron_labs_diffusion",
        vocab_size=131072,
        num_layers=layers or LAYERS[name],
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        rms_norm_eps=1e-5,
        max_position_embeddings=262144,
        rope=RopeConfig(
            rope_type="yarn",
            rope_theta=1e6,
            factor=16.0,
            original_max_position_embeddings=16384,
            mscale=1.0,
            mscale_all_dim=1.0,
            llama_4_scaling_beta=0.1,
        ),
        **SIZES[name],
    )


def random_tensors(config: ModelConfig) -> ReadTensor:
    """Makes each tensor when it is read, in bf16 as the checkpoints have them."""
    shapes = expected_tensors(config)
    generator = torch.Generator().manual_seed(0)

    def read(name: str) -> Tensor:
        shape = shapes[name]
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) == 1:
            return tensor.fill_(1.0)
        bound = (3 / shape[1]) ** 0.5  # outputs as large as inputs
        return tensor.uniform_(-bound, bound, generator=generator)

    return read


@torch.inference_mode()
def measure(
    name: str, layers: int | None, context: int, rows: list[int], repeats: int
) -> dict[str, Any]:
    """One model: build it, time passes of all row counts in turn."""
    config = shape_of(name, layers)
    before = megabytes("VmRSS")
    runner = build_runner(config, random_tensors(config), dtype="int8")
    memory = {
        "weights": round(weight_bytes(runner.transformer) / 2**20),
        "held": round(megabytes("VmRSS") - before),
        "peak": round(megabytes("VmHWM") - before),
    }
    cache = KVCache(config, context + max(rows), dtype=runner.kv_dtype)
    run(runner, cache, context)
    cache.keep(range(context))
    times: dict[int, list[float]] = {count: [] for count in rows}
    for count in rows:  # once to warm up
        run(runner, cache, count)
    for _ in track(range(repeats), name, console=Console(stderr=True), transient=True):
        for count in rows:
            start = time.perf_counter()
            run(runner, cache, count)
            times[count].append((time.perf_counter() - start) * 1e3)
    return {
        "model": name,
        "layers": config.num_layers,
        "parameters": sum(torch.Size(s).numel() for s in expected_tensors(config).values()),
        "kernel": runner.describe(),
        "megabytes": memory,
        "milliseconds": {
            count: {"median": round(statistics.median(found), 1), "least": round(min(found), 1),
                    "most": round(max(found), 1)}
            for count, found in times.items()
        },
    }  # fmt: skip


def show(found: list[dict[str, Any]], context: int) -> None:
    """A table with a column for each model."""
    console = Console()
    table = Table(title=f"int8, one pass over {context} cached tokens: ms (least..most), ratio")
    table.add_column("rows", justify="right")
    for result in found:
        table.add_column(f"{result['model']}, {result['layers']} layers", justify="right")
    for count in found[0]["milliseconds"]:
        cells = []
        for result in found:
            times = result["milliseconds"]
            here, first = times[count], next(iter(times.values()))
            spread = f"{here['least']:.0f}..{here['most']:.0f}"
            cells.append(f"{here['median']:.1f} ({spread}) {here['median'] / first['median']:.2f}x")
        table.add_row(str(count), *cells)
    console.print(table)
    for result in found:
        memory = ", ".join(f"{name} {value}" for name, value in result["megabytes"].items())
        console.print(
            f"{result['model']}: {result['parameters'] / 1e9:.2f} G parameters, "
            f"{result['kernel']}; MB: {memory}",
            highlight=False,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="fewer, to try the script; nothing is saved")
    arguments = parser.parse_args()
    found = []
    for name in arguments.models:
        # A process each: its peak is its own, and its memory is free before the next begins.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            asked = (arguments.layers, arguments.context, arguments.rows, arguments.repeats)
            found.append(pool.submit(measure, name, *asked).result())
    info = header()
    Console().print(f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}")
    show(found, arguments.context)
    if arguments.layers is None:
        save("large_shapes", {**info, "context": arguments.context, "results": found})


if __name__ == "__main__":
    main()
