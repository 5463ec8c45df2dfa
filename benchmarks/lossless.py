"""How often `linear` and `quadratic` differ from `ar` on real prompts, and by what logit gap.

    python benchmarks/lossless.py --data ../shared/data [--prompts 200] [--temperature 0.8]
        [--only "all modes mixed" "each mode alone"]

Every prompt runs in `ar`, and in `linear` and `quadratic` at each block length, packed with others
of its mode; then each in one mode and length, packed with others of every mode, and alone.
A difference is a flip: where the two answers part, the verifier's two best logits were nearly
tied. The gap at that point (recomputed by a fresh prefill) is printed for each.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from machine import RESULTS, header, save
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trimode import GenerationOptions, LoadedModel, load
from trimode.engine import Engine, drain, encode_prompt
from trimode.model import KVCache, Segment

BLOCK_LENGTHS = (1, 2, 5, 8, 16, 32)
MIXED = [
    ("linear", 8),
    ("quadratic", 2),
    ("ar", None),
    ("linear", 16),
    ("quadratic", 5),
    ("linear", 5),
]
QUADRATIC_SHARE = {8: 4, 16: 10, 32: 40}
"""A quadratic pass has B(B+1) rows: at these lengths only one prompt in so many is run."""


def read_prompts(folder: Path, count: int) -> list[str]:
    """User instructions, GSM8K test questions and HumanEval-style tasks, in turn."""
    sources = [
        [
            "\n".join(filter(None, (row["instruction"], row["instances"][0]["input"])))
            for row in _rows(folder / "self_instruct" / "user_oriented_instructions.jsonl")
        ],
        [row["question"] for row in _rows(folder / "gsm8k" / "test.jsonl")],
        [row["prompt"] for row in _rows(folder / "ifeval" / "input_data.jsonl")],
        [row["text"] for row in _rows(folder / "mbpp" / "mbpp.jsonl")],
    ]
    mixed = [text for group in zip(*sources, strict=False) for text in group]
    if len(mixed) < count:
        raise SystemExit(f"--prompts: {count} asked, {len(mixed)} available")
    return mixed[:count]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


@torch.inference_mode()
def gap_at(model: LoadedModel, tokens: list[int]) -> float:
    """Distance of the two best logits after `tokens`, by one fresh prefill."""
    transformer = model.transformer
    cache = KVCache(model.config, len(tokens), dtype=transformer.dtype, device=transformer.device)
    segments = [Segment(0, len(tokens), cache, "causal")]
    hidden = transformer.run(torch.tensor(tokens), torch.arange(len(tokens)), segments)
    best = transformer.logits(hidden[-1:]).topk(2).values[0]
    return float(best[0] - best[1])


def answers(
    model: LoadedModel,
    prompts: list[list[int]],
    options: list[GenerationOptions],
    progress: Progress,
    name: str,
    together: int = 16,
) -> list[list[int]]:
    """Completion tokens of each prompt, `together` sequences packed into a pass."""
    engine = Engine(model, max_sequences=together)
    sequences = [engine.add(p, o) for p, o in zip(prompts, options, strict=True)]
    task = progress.add_task(name, total=len(prompts))
    for update in drain(engine):
        if update.sequence.finish_reason is not None:
            progress.advance(task)
    progress.remove_task(task)
    return [sequence.tokens for sequence in sequences]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--only", nargs="+", help="names of runs; the others' results are kept")
    arguments = parser.parse_args()

    model = load(arguments.model, dtype=arguments.dtype, progress=False)
    texts = read_prompts(arguments.data, arguments.prompts)
    prompts = [encode_prompt(model, text)[:1024] for text in texts]

    def options(i: int, mode: str, block_length: int | None) -> GenerationOptions:
        fields = {
            "mode": mode,
            "max_tokens": arguments.max_tokens,
            "temperature": arguments.temperature,
            "block_length": block_length,
            "seed": i,
        }
        return GenerationOptions.from_mapping(fields)

    everyone = range(len(prompts))
    runs: list[tuple[str, int, list[GenerationOptions]]] = []
    for mode, block_length in itertools.product(("linear", "quadratic"), BLOCK_LENGTHS):
        share = QUADRATIC_SHARE.get(block_length, 1) if mode == "quadratic" else 1
        asked = [options(i, mode, block_length) for i in everyone[: max(1, len(prompts) // share)]]
        runs.append((f"{mode} {block_length}", 16, asked))
    cycled = [options(i, *MIXED[i % len(MIXED)]) for i in everyone]
    runs += [("all modes mixed", 16, cycled), ("each mode alone", 1, cycled)]
    name = f"lossless_{arguments.dtype}_T{arguments.temperature:g}"
    asked_for = {"prompts": len(prompts), "max_tokens": arguments.max_tokens,
                 "temperature": arguments.temperature}  # fmt: skip
    rows = []
    if arguments.only:
        runs = [run for run in runs if run[0] in arguments.only]
        rows = earlier(name, asked_for, arguments.only)

    console = Console()
    table = Table(
        title=f"{len(prompts)} prompts, {arguments.max_tokens} tokens, T {arguments.temperature}"
    )
    for column in ("run", "equal to ar", "tokens", "flips: prompt, token, logit gap"):
        table.add_column(column)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        plain = [options(i, "ar", None) for i in everyone]
        reference = answers(model, prompts, plain, progress, "ar")
        for title, together, asked in runs:
            count = len(asked)
            found = answers(model, prompts[:count], asked, progress, title, together)
            flips = []
            for i, (ours, wanted) in enumerate(zip(found, reference, strict=False)):
                if ours != wanted:
                    pairs = zip(ours, wanted, strict=False)
                    at = next((k for k, (a, b) in enumerate(pairs) if a != b), len(wanted))
                    gap = gap_at(model, prompts[i] + wanted[:at])
                    flips.append({"prompt": i, "token": at, "logit_gap": gap})
            rows.append({"run": title, "prompts": count, "flips": flips})
            listed = "; ".join(f"{f['prompt']}, {f['token']}, {f['logit_gap']:.1e}" for f in flips)
            tokens = sum(map(len, found))
            equal = f"{count - len(flips)}/{count}"
            table.add_row(title, equal, str(tokens), listed)
            console.print(f"{title}: {equal} equal", highlight=False)
    console.print(table)
    save(name, {**header(), **asked_for, "runs": rows})
    total, flips = sum(row["prompts"] for row in rows), sum(len(row["flips"]) for row in rows)
    console.print(f"{flips} flips in {total} answers of all runs")


def earlier(name: str, asked_for: dict, only: list[str]) -> list[dict]:
    """Results of other runs that an earlier call with the same settings saved."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if any(found[key] != value for key, value in asked_for.items()):
        raise SystemExit(f"{path}: made with other settings; run without --only")
    return [row for row in found["runs"] if row["run"] not in only]


if __name__ == "__main__":
    main()
