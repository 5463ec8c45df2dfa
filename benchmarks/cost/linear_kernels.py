"""Milliseconds of all linears and the head of a 135M model, by weight format and rows.

    python benchmarks/cost/linear_kernels.py

Only the matrix products: no attention, no norms. The shapes are those of SmolLM2-135M, the weights
are random. The last columns say whether a row's result has the same bits in every slicing tried.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from trimode.model.formats.fbgemm import FbgemmLinear
from trimode.model.formats.onednn import OneDnnLinear

LAYERS, HIDDEN, KV, INNER, VOCAB = 30, 576, 192, 1536, 49152
SHAPES = [(HIDDEN + 2 * KV, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
ROWS = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 9

Product = Callable[[torch.Tensor], torch.Tensor]


def int8_dynamic(weight: torch.Tensor) -> Product:
    """FBGEMM int8 with one activation scale for the whole tensor."""
    scales = weight.abs().amax(1) / 127
    zeros = torch.zeros(len(weight), dtype=torch.long)
    quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantised, None)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, False)


FORMATS: dict[str, Callable[[torch.Tensor], Product]] = {
    "F.linear fp32": lambda w: lambda x: F.linear(x, w),
    "F.linear bf16": lambda w: (lambda half: lambda x: F.linear(x.bfloat16(), half))(w.bfloat16()),
    "oneDNN fp32, packed": lambda w: OneDnnLinear(w, None),
    "FBGEMM 16-bit weights": lambda w: FbgemmLinear(w, None),
    "FBGEMM int8, tensor scale": int8_dynamic,
}


def independent(product: Product, columns: int) -> bool:
    """Whether slices of 1 to 31 rows give the bits of the 64-row product."""
    x = torch.randn(64, columns)
    whole = product(x)
    return all(
        torch.equal(product(x[start : start + rows]), whole[start : start + rows])
        for rows in (1, 2, 3, 5, 8, 16, 31)
        for start in range(0, 64 - rows, 5)
    )


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(shape) * 0.05 for _ in range(LAYERS) for shape in SHAPES]
    weights.append(torch.randn(VOCAB, HIDDEN) * 0.05)
    table = Table("format", *[f"{rows} rows" for rows in ROWS], "rows independent")
    results = {}
    for name, pack in FORMATS.items():
        products = [(pack(weight), weight.shape[1]) for weight in weights]
        medians = {}
        for rows in ROWS:
            inputs = {columns: torch.randn(rows, columns) for columns in (HIDDEN, INNER)}
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                for product, columns in products:
                    product(inputs[columns])
                times.append((time.perf_counter() - start) * 1e3)
            medians[rows] = round(statistics.median(times), 1)
        same = all(independent(products[i][0], products[i][1]) for i in range(len(SHAPES)))
        results[name] = {"milliseconds": medians, "rows_independent": same}
        table.add_row(name, *[str(m) for m in medians.values()], "yes" if same else "no")
        del products
    info = header()
    Console().print(f"{info['cpu']}, {info['threads']} threads, torch {info['torch']}")
    Console().print(table)
    save("linear_kernels", {**info, "results": results})


if __name__ == "__main__":
    main()
