"""Milliseconds of a layer's attention in training: PyTorch's kernel, and ours in chunks.

    python benchmarks/training/clean_attention.py [--length 1024]

SmolLM2-135M's heads (9 on 3, of 64), one row with a causal mask, forward and backward. Least third
of the runs.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.lib.machine import header, save
from trimode.training.chunked_attention import attend, parts

HEADS, KEY_HEADS, SIZE = 9, 3, 64
RUNS = 9


def measured(run: Callable[[], Tensor]) -> tuple[float, float]:
    """Milliseconds of the forward and of the backward pass."""
    forward, backward = [], []
    for _ in range(RUNS):
        begun = time.perf_counter()
        output = run()
        middle = time.perf_counter()
        output.backward(torch.ones_like(output))
        forward.append(middle - begun)
        backward.append(time.perf_counter() - middle)
    return sorted(forward)[RUNS // 3] * 1e3, sorted(backward)[RUNS // 3] * 1e3


def ways(
    queries: Tensor, keys: Tensor, values: Tensor, visible: Tensor
) -> dict[str, Callable[[], Tensor]]:
    """What is compared."""
    pytorch, cut = F.scaled_dot_product_attention, parts([visible])
    return {
        "PyTorch, mask": lambda: pytorch(
            queries, keys, values, attn_mask=visible[:, None], enable_gqa=True
        ),
        "PyTorch, is_causal": lambda: pytorch(
            queries, keys, values, is_causal=True, enable_gqa=True
        ),
        "chunks": lambda: attend(queries, [keys], [values], cut),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=1024)
    length = parser.parse_args().length
    visible = torch.ones(1, length, length, dtype=torch.bool).tril()
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        queries, keys, values = (
            torch.randn(1, heads, length, SIZE, dtype=dtype, requires_grad=True)
            for heads in (HEADS, KEY_HEADS, KEY_HEADS)
        )
        for name, run in ways(queries, keys, values, visible).items():
            forward, backward = measured(run)
            row = {"dtype": str(dtype).removeprefix("torch."), "way": name,
                   "forward_ms": round(forward, 1), "backward_ms": round(backward, 1)}  # fmt: skip
            rows.append(row)
    save("clean_attention", {**header(), "length": length, "rows": rows})
    table = Table("dtype", "way", "forward, ms", "backward, ms", title=f"{length} tokens")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
