"""What it gains to find a row's likeliest token without all of the head (`native/screen.h`).

    python benchmarks/cost/likeliest.py --data data [--model MODEL] [--repeats 25]

The head: all logits and their argmax against the likeliest tokens, in turns, for each set of
kernels that this machine runs; between them the weights leave the caches. Decoding: prompts in `ar`
and `auto`, each with and without, in turns, and whether the answers are equal. Ratios are medians.
Besides: how many of the head's strips the bounds leave to be computed in full, a row.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.prompts import mixed_prompts
from trimode import load
from trimode.checkpoints import LoadedModel, open_checkpoint
from trimode.engine import generate
from trimode.model import Runner, native
from trimode.model.formats.int4 import GroupedLinear, quantise_rows
from trimode.model.quantised import QuantisedMatrix
from trimode.model.runners import NativeRunner
from trimode.model.runners.native import highest_outputs, linear

ROWS = (1, 2, 4, 8, 16, 32, 64)
PROMPTS, TOKENS = 16, 64
DEVIATIONS, VARIANCE, LIKELY_STRIPS = 8, 21.25, 4
"""As in `screen.h`."""


def states(model: LoadedModel, prompts: list[str]) -> torch.Tensor:
    """What `ar` decides from: hidden states `[n, dim]`."""
    seen: list[torch.Tensor] = []
    find = NativeRunner.likeliest

    def likeliest(runner: NativeRunner, hidden: torch.Tensor) -> list[int] | None:
        seen.append(hidden.clone())
        return find(runner, hidden)

    with patch.object(NativeRunner, "likeliest", likeliest):
        for prompt in prompts:
            generate(model, prompt, mode="ar", max_tokens=TOKENS)
    return torch.cat(seen)


def strips_left(head: QuantisedMatrix, hidden: torch.Tensor, lanes: int) -> list[int]:
    """Strips whose bounds reach the highest output, of each row."""
    values, scale, _ = head.groups()
    upper = values.view(len(head), -1, 32).float().div(16).floor() * 16 + 7.5 - 128
    screen = (upper * scale[..., None]).flatten(1)
    weight, variance = head.floats().T, scale.square().T * VARIANCE
    counts = []
    for part in hidden.split(64):
        rows = quantise_rows(part)
        x = rows.values * rows.scale[..., None]
        outputs = x.flatten(1) @ weight
        spread = x.square().sum(-1) @ variance
        bounds = x.flatten(1) @ screen.T + DEVIATIONS * spread.sqrt()
        bounds, outputs = (
            torch.nn.functional.pad(found, (0, -len(head) % lanes), value=-torch.inf)
            .view(len(part), -1, lanes)
            .amax(-1)
            for found in (bounds, outputs)
        )
        likely = outputs.gather(1, bounds.topk(LIKELY_STRIPS, 1).indices).amax(1, keepdim=True)
        counts += (bounds >= likely).sum(1).tolist()
    return counts


def ratio_of(
    first: Callable[[], object], second: Callable[[], object], repeats: int, between: torch.Tensor
) -> dict[str, float]:
    """Least milliseconds of both, and the median of second / first."""
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        pair = []
        for act in (first, second):
            between.add_(1)
            began = time.perf_counter()
            act()
            pair.append(time.perf_counter() - began)
        found.append((pair[0], pair[1]))
    return {
        "logits_ms": round(min(a for a, _ in found) * 1e3, 2),
        "likeliest_ms": round(min(b for _, b in found) * 1e3, 2),
        "ratio": round(statistics.median(b / a for a, b in found), 2),
    }


def heads(weight: QuantisedMatrix, hidden: torch.Tensor, repeats: int) -> dict[str, dict]:
    """Both ways for each set of kernels."""
    library = native.library()
    assert library is not None
    between = torch.zeros(48 << 20, dtype=torch.uint8)
    found: dict[str, dict] = {}
    index = 0
    while (name := library.trimode_kernels(index)) is not None:
        library.trimode_use_kernels(index)
        index += 1
        head = GroupedLinear([weight], None, packs=True)
        found[name.decode()] = {
            rows: ratio_of(
                lambda x=x, head=head: linear(head, x).numpy().argmax(1),
                lambda x=x, head=head: highest_outputs(head, x),
                repeats,
                between,
            )
            for rows, x in ((rows, hidden[:rows].contiguous()) for rows in ROWS)
        }
    return found


def decoding(model: LoadedModel, prompts: list[str], mode: str) -> dict[str, object]:
    """Tokens a second with and without, and the quartiles of their ratio."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    answers: dict[bool, list[list[int]]] = {True: [], False: []}

    def answer(prompt: str, *, screened: bool) -> tuple[float, list[int]]:
        find = NativeRunner.likeliest if screened else Runner.likeliest
        with patch.object(NativeRunner, "likeliest", find):
            began = time.perf_counter()
            result = generate(model, prompt, mode=mode, max_tokens=TOKENS)
            rate = len(result.token_ids) / (time.perf_counter() - began)
        return rate, list(result.token_ids)

    for prompt in prompts[:2]:  # warm
        answer(prompt, screened=True)
    for number, prompt in enumerate(prompts):
        for screened in (True, False) if number % 2 else (False, True):
            rate, tokens = answer(prompt, screened=screened)
            rates[screened].append(rate)
            answers[screened].append(tokens)
    ratios = [a / b for a, b in zip(rates[True], rates[False], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {
        "tokens_per_second": round(statistics.median(rates[True]), 1),
        "without": round(statistics.median(rates[False]), 1),
        "gain": round(middle, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "answers": len(prompts),
        "equal": sum(a == b for a, b in zip(answers[True], answers[False], strict=True)),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--repeats", type=int, default=25)
    given = parser.parse_args()
    console, prompts = Console(), mixed_prompts(given.data, PROMPTS)
    model = load(given.model, dtype="int4", progress=False)
    found: dict[str, object] = {
        "decoding": {mode: decoding(model, prompts, mode) for mode in ("ar", "auto")}
    }
    hidden = states(model, prompts[:8])
    weight = open_checkpoint(given.model).read("embed_tokens.weight")
    assert isinstance(weight, QuantisedMatrix)
    library = native.library()
    assert library is not None
    lanes = library.trimode_lanes()
    left = sorted(strips_left(weight, hidden, lanes))
    found["strips"] = {
        "all": -(-len(weight) // lanes),
        "left": {
            "median": left[len(left) // 2],
            "p90": left[len(left) * 9 // 10],
            "mean": round(statistics.mean(left), 1),
        },
        "rows": len(left),
    }
    found["head"] = heads(weight, hidden[: max(ROWS)], given.repeats)
    table = Table("kernels", "rows", "logits, ms", "likeliest, ms", "ratio")
    for name, of in found["head"].items():
        for rows, one in of.items():
            table.add_row(name, str(rows), *(str(value) for value in one.values()))
    console.print(table)
    console.print({key: found[key] for key in ("strips", "decoding")})
    save("likeliest", {**header(), **found})


if __name__ == "__main__":
    main()
