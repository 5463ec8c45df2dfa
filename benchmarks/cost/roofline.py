"""Which share of the machine's limit each pass reaches.

    python benchmarks/cost/roofline.py [--model MODEL] [--context 256] [--repeats 25]

The limit of a pass is the longer of two times: its weights at the bandwidth of memory, and its
multiply-adds at the rate of the instructions that do them. Both rates are measured by a small C++
program (`limits.cpp`), with as many threads as a pass has. The products with the layers' weights,
the head, and all of the pass are compared with it. Of int4's head, which holds 8 bits a weight, a
pass of few rows reads the upper half (`native/screen.h`), and only that counts. Five passes of each
kind take turns; the tenth percentile counts.

Without AMX, int8's kernels multiply 16-bit numbers, half as many an instruction: their limit is
lower.
"""

import argparse
import ctypes
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.passes import run, text_tokens
from trimode import load
from trimode.checkpoints import LoadedModel
from trimode.model import KVCache, native
from trimode.model.native.cores import threads

ROWS = (1, 2, 4, 8, 16, 32, 64)
DTYPES = ("int8", "int4")
UPPER = (16 + 2) / (32 + 2)
"""Share of a group's bytes in Q8_0 that are upper nibbles or its scale."""
IN_TURN = 5
"""Passes of one kind in succession, as in decoding: caches hold what the one before left."""
SOURCE = Path(__file__).with_name("limits.cpp")
KINDS = {"AVX2": 0, "AVX-VNNI": 1, "AVX-512 VNNI": 2}


class Limits:
    """Rates of the machine."""

    def __init__(self, repeats: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            library = Path(directory) / "limits.so"
            command = ["g++", "-O3", "-std=c++17", "-mavx2", "-pthread", "-shared", "-fPIC"]
            subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True)
            found = ctypes.CDLL(str(library))
        found.bandwidth.restype = found.multiply_adds.restype = ctypes.c_double
        found.bandwidth.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
        found.multiply_adds.argtypes = [ctypes.c_int64, ctypes.c_int64]
        data = torch.ones(256 * 2**20, dtype=torch.uint8)
        count = threads()
        self.bandwidth = max(
            found.bandwidth(data.data_ptr(), len(data), count) for _ in range(repeats)
        )
        kind = KINDS[native.group_kernels()]
        self.multiply_adds = max(found.multiply_adds(kind, count) for _ in range(3))

    def seconds(self, size: float, products: float, dtype: str) -> float:
        """The shortest time for so many bytes of weights and multiply-adds."""
        halved = dtype == "int8" and not native.wants_packed()
        rate = self.multiply_adds / 2 if halved else self.multiply_adds
        return max(size / self.bandwidth, products / rate)


def sizes(model: LoadedModel, rows: int = 0) -> dict[str, tuple[float, float]]:
    """Bytes and weights of the layers' linears and of the head, as a pass of `rows` reads them."""
    found = {"layers": [0.0, 0.0], "head": [0.0, 0.0]}
    for name, module in model.runner.transformer.named_modules():
        if not hasattr(module, "weight_bytes"):
            continue
        part = found["head" if module is model.runner.transformer.head else "layers"]
        if ".delta" not in name:
            part[0] += module.weight_bytes
            part[1] += module.in_features * module.out_features
    hidden = torch.zeros(rows, model.config.hidden_size)
    if rows and model.runner.likeliest(hidden) is not None:
        found["head"][0] *= UPPER
    return {name: (size, weights) for name, (size, weights) in found.items()}


@torch.inference_mode()
def measure(source: str, context: int, repeats: int) -> dict:
    limits = Limits(10)
    models = {dtype: load(source, dtype=dtype, progress=False) for dtype in DTYPES}
    texts = {dtype: text_tokens(model) for dtype, model in models.items()}
    caches = {}
    for dtype, model in models.items():
        cache = KVCache(model.config, context + max(ROWS), dtype=model.runner.kv_dtype)
        run(model.runner, cache, context, texts[dtype])
        cache.keep(range(context))
        caches[dtype] = cache
    times: dict = {(dtype, rows): ([], [], []) for dtype in DTYPES for rows in ROWS}
    for _ in range(repeats):
        for (dtype, rows), (layers, heads, passes) in times.items():
            runner = models[dtype].runner
            for _ in range(IN_TURN):
                began = time.perf_counter()
                _, head = run(runner, caches[dtype], rows, texts[dtype])
                passes.append(time.perf_counter() - began)
                heads.append(head)
                layers.append(runner.products_seconds)
    rows_found = []
    for (dtype, rows), measured in times.items():
        layers, head, whole = (sorted(each)[len(each) // 10] * 1e3 for each in measured)
        size = sizes(models[dtype], rows)
        best = {
            part: limits.seconds(bytes_, rows * weights, dtype) * 1e3
            for part, (bytes_, weights) in size.items()
        }
        rows_found.append(
            {
                "dtype": dtype,
                "rows": rows,
                "milliseconds": {"layers": layers, "head": head, "pass": whole},
                "limit": best,
                "share": {
                    "layers": best["layers"] / layers,
                    "head": best["head"] / head,
                    "products": (best["layers"] + best["head"]) / (layers + head),
                    "pass": (best["layers"] + best["head"]) / whole,
                },
            }
        )
    return {
        "bandwidth_gb_s": limits.bandwidth / 1e9,
        "multiply_adds_g_s": limits.multiply_adds / 1e9,
        "kernels": {dtype: model.runner.describe() for dtype, model in models.items()},
        "weights_mb": {
            dtype: {part: size / 1e6 for part, (size, _) in sizes(model).items()}
            for dtype, model in models.items()
        },
        "passes": rows_found,
    }


def show(found: dict) -> None:
    console = Console()
    console.print(
        f"limits: {found['bandwidth_gb_s']:.1f} GB/s read, "
        f"{found['multiply_adds_g_s']:.0f} G multiply-adds of bytes a second"
    )
    table = Table(title="milliseconds (share of the limit)")
    for name in ("rows", "dtype", "layers' products", "head", "both", "pass"):
        table.add_column(name, justify="right")
    for each in sorted(found["passes"], key=lambda one: (one["rows"], one["dtype"])):
        took, share = each["milliseconds"], each["share"]
        both = took["layers"] + took["head"]
        table.add_row(
            str(each["rows"]),
            each["dtype"],
            f"{took['layers']:.2f} ({share['layers']:.0%})",
            f"{took['head']:.2f} ({share['head']:.0%})",
            f"{both:.2f} ({share['products']:.0%})",
            f"{took['pass']:.2f} ({share['pass']:.0%})",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=25)
    given = parser.parse_args()
    found = measure(given.model, given.context, given.repeats)
    show(found)
    save("roofline", {**header(), **found})


if __name__ == "__main__":
    main()
