"""How far each dtype's distribution is from fp32's, on fp32's own greedy answers.

    python benchmarks/quality/dtype_quality.py --data data [--prompts 8] [--max-tokens 64]

Perplexity ratio: the answers' AR perplexity in a dtype / in fp32. Agreement: share of the answers'
tokens that the dtype's AR would choose after the same prefix.
"""

import argparse
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.prompts import prompt_sets
from benchmarks.lib.scoring import score
from trimode import LoadedModel, generate_batch, load
from trimode.engine import encode_prompt


def measure(model: LoadedModel, pairs: list[tuple[list[int], list[int]]]) -> tuple[float, float]:
    """Mean negative log-likelihood of the answers' tokens, and agreement."""
    found = [score(model, prompt, answer) for prompt, answer in pairs]
    count = sum(len(answer) for _, answer in pairs)
    return sum(loss for loss, _ in found) / count, sum(agreed for _, agreed in found) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=8, help="of each set")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    model = load(arguments.model, dtype="fp32", progress=False)
    texts = [t for part in prompt_sets(arguments.data, arguments.prompts).values() for t in part]
    prompts = [encode_prompt(model, text) for text in texts]
    answers = generate_batch(model, prompts, max_tokens=arguments.max_tokens)
    pairs = [(p, list(a.token_ids)) for p, a in zip(prompts, answers, strict=True)]
    found = {"fp32": measure(model, pairs)}
    for dtype in ("bf16", "int8"):
        found[dtype] = measure(load(arguments.model, dtype=dtype, progress=False), pairs)
    reference, _ = found["fp32"]
    table = Table("dtype", "perplexity ratio", "agreement")
    rows = {}
    for dtype, (loss, agreed) in found.items():
        rows[dtype] = {
            "perplexity_ratio": round(math.exp(loss - reference), 4),
            "agreement": round(agreed, 4),
        }
        table.add_row(dtype, *(f"{value:.4f}" for value in rows[dtype].values()))
    Console().print(table)
    tokens = sum(len(answer) for _, answer in pairs)
    save("dtype_quality", {**header(), "tokens": tokens, "dtypes": rows})


if __name__ == "__main__":
    main()
