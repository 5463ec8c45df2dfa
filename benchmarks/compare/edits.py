"""What a prediction is worth: `auto` with a text that the answer mostly repeats, beside `ar`.

    python benchmarks/compare/edits.py --data data [--prompts 12] [--max-tokens 128]
        [--edited 0 0.02 0.05 0.1] [--dtype auto]

A client that edits code knows most of the answer before it asks, and sends it as `prediction`. Here
the prediction is the model's own answer to a HumanEval prompt, changed: in each place, with a
chance of `--edited`, one to six tokens are left out, put in or replaced. Both modes answer the same
prompts in turn, and every answer of `auto` must equal `ar`'s. The ratio is of the tokens a
second of all answers, prompts included; "by prompt" is its quartiles over prompts.
"""

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.prompts import texts
from trimode import GenerationOptions, load
from trimode.checkpoints import LoadedModel
from trimode.engine import Engine, drain, encode_prompt
from trimode.engine.costs import cost_curve

LONGEST_PIECE = 6


def edited(tokens: Sequence[int], share: float, words: int, seed: int) -> tuple[int, ...]:
    """The tokens with random edits; in each place one begins with a chance of `share`."""
    rng, found, place = random.Random(seed), list[int](), 0
    while place < len(tokens):
        if rng.random() >= share:
            found.append(tokens[place])
            place += 1
            continue
        size = rng.randint(1, LONGEST_PIECE)
        kind = rng.choice(("left out", "put in", "replaced"))
        if kind != "left out":
            found += [rng.randrange(words) for _ in range(size)]
        if kind != "put in":
            place += size
    return tuple(found)


def timed(
    engine: Engine, model: LoadedModel, prompt: str, **options: Any
) -> tuple[tuple[int, ...], float, int]:
    """Tokens, seconds and passes of an answer."""
    began = time.perf_counter()
    sequence = engine.add(encode_prompt(model, prompt), GenerationOptions(**options))
    for _ in drain(engine):
        pass
    return tuple(sequence.tokens), time.perf_counter() - began, sequence.stats.nfe


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    model = load(arguments.model, dtype=arguments.dtype, progress=False)
    prompts = texts(arguments.data, "humaneval")[:: 164 // arguments.prompts][: arguments.prompts]
    costs = cost_curve(model)
    found = []
    for share in arguments.edited:
        pairs, passes, tokens = [], 0, 0
        engines = {mode: Engine(model, max_sequences=1, costs=costs) for mode in ("ar", "auto")}
        for number, prompt in enumerate(prompts):
            plain, before, _ = timed(
                engines["ar"], model, prompt, mode="ar", max_tokens=arguments.max_tokens
            )
            answer, after, nfe = timed(
                engines["auto"],
                model,
                prompt,
                mode="auto",
                max_tokens=arguments.max_tokens,
                prediction=edited(plain, share, model.config.vocab_size, number),
            )
            if answer != plain:
                raise SystemExit(f"prompt {number}: the answer is not ar's")
            pairs.append((before, after))
            passes += nfe
            tokens += len(answer)
        ratios = [before / after for before, after in pairs]
        before, after = (sum(times) for times in zip(*pairs, strict=True))
        found.append(
            {
                "edited": share,
                "tokens": tokens,
                "ar_tokens_per_second": round(tokens / before, 1),
                "auto_tokens_per_second": round(tokens / after, 1),
                "ratio": round(before / after, 3),
                "quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)[::2]],
                "tokens_per_forward": round(tokens / passes, 2),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--edited", type=float, nargs="+", default=[0, 0.02, 0.05, 0.1])
    arguments = parser.parse_args()
    rows = measure(arguments)
    table = Table(title="auto with a prediction, beside ar")
    for name in ("edited", "ar tok/s", "auto tok/s", "ratio", "by prompt", "tokens a pass"):
        table.add_column(name, justify="right")
    for row in rows:
        low, high = row["quartiles"]
        table.add_row(
            f"{row['edited']:.0%}",
            f"{row['ar_tokens_per_second']:g}",
            f"{row['auto_tokens_per_second']:g}",
            f"{row['ratio']:.2f}",
            f"{low:g} to {high:g}",
            f"{row['tokens_per_forward']:g}",
        )
    Console().print(table)
    save("edits", {**header(), "max_tokens": arguments.max_tokens, "rows": rows})


if __name__ == "__main__":
    main()
