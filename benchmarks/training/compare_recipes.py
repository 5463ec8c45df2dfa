"""Recipes at equal compute: what each has learnt after the same seconds or noisy tokens.

    python benchmarks/training/compare_recipes.py --data-file run.jsonl --data data
        --output compared [--seconds 600 | --noisy-tokens N] [--set adapter.rank=32]
        [--set step.objective.distance_decay=1 step.noise.draft_share=1] [--max-steps N]

Compared are `denoise`, `nld_draft` (NLD's draft alignment on o_proj, rank 128), and one variant of
`denoise` for each `--set`, with its fields. All train an adapter of SmolLM2 from scratch on the
same self-generated conversations (`trimode convert` writes such a file), in bf16 if the CPU
multiplies bf16. The learning rate is constant after the warm-up, since the number of steps is known
only at the end. Seconds are those of training steps, without loading and saving.

The score is the acceptance length of `linear`, with a line of tokens and with a draft tree, as in
benchmarks/quality/conversion.py: int8, temperature 0, prompts that were not trained on. Drafts of
`nld_draft` begin with their seed, as NLD's do, and are lines in both columns.

Runs and scores are kept under `--output`. The same command continues an interrupted comparison.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.machine import header, save
from benchmarks.lib.prompts import prompt_sets
from benchmarks.lib.scoring import together
from trimode import generate_batch, load
from trimode.cli.train import field_overrides
from trimode.engine import encode_prompt
from trimode.training import RECIPES
from trimode.training.config import TrainConfig, read_train_config
from trimode.training.trainer import Trainer


def configurations(arguments: argparse.Namespace) -> dict[str, TrainConfig]:
    """What is compared, by name."""
    variants: dict[str, tuple[str, list[str]]] = {
        "denoise": ("denoise", []),
        "nld_draft": ("nld_draft", []),
    }
    variants |= {" ".join(fields): ("denoise", fields) for fields in arguments.set}
    fixed: dict[str, Any] = {
        "model": arguments.model,
        "data.files": [str(arguments.data_file)],
        "optimiser.schedule": "constant",
        "evaluation.every": 0,
        "precision": "auto",
        "steps": arguments.max_steps,
    }
    found = {}
    for name, (recipe, fields) in variants.items():
        folder = "".join(c if c.isalnum() or c in "._=-" else "_" for c in name)
        asked = fixed | {"output": str(arguments.output / folder)} | field_overrides(fields)
        found[name] = read_train_config(RECIPES / f"{recipe}.yaml", asked)
    return found


def spent(run: Path) -> dict[str, float]:
    """Steps, seconds and tokens that a run has trained."""
    path = run / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names = ("seconds", "noisy_tokens", "masked_tokens")
    return {"steps": len(rows)} | {name: sum(row[name] for row in rows) for name in names}


def trained(config: TrainConfig, budget: str, amount: float) -> bool:
    """Train until the budget is spent; False if a signal ended it before."""
    run = Path(config.output)
    if (run / "final").exists() and spent(run)[budget] >= amount:
        return True
    return Trainer(config).run(should_stop=lambda: spent(run)[budget] >= amount)


def scored(config: TrainConfig, sets: dict[str, list[str]], options: dict[str, Any]) -> dict:
    """Acceptance lengths of a trained adapter on each set of prompts and on all."""
    run = Path(config.output)
    path, asked = run / "score.json", {**options, "steps": spent(run)["steps"]}
    asked["prompts"] = {name: len(texts) for name, texts in sets.items()}
    if path.exists() and (known := json.loads(path.read_text()))["asked"] == asked:
        return known["scores"]
    model = load(config.model, dtype="int8", adapter=run / "final", progress=False)
    scores: dict[str, dict[str, float]] = {}
    for form, tree in (("line", False), ("tree", True)):
        found, everything = {}, []
        for name, texts in sets.items():
            prompts = [encode_prompt(model, text) for text in texts]
            results = generate_batch(model, prompts, mode="linear", draft_tree=tree, **options)
            everything += results
            found[name] = round(together(results).acceptance_length or 0.0, 3)
        stats = together(everything)
        scores[form] = found | {
            "all": round(stats.acceptance_length or 0.0, 3),
            "tokens_per_forward": round(stats.tokens_per_forward, 3),
        }
    path.write_text(json.dumps({"asked": asked, "scores": scores}, indent=1) + "\n")
    return scores


def show(rows: list[dict[str, Any]], title: str) -> None:
    """A table with a line for each recipe."""
    table = Table(title=title)
    for column in ("recipe", "steps", "seconds", "noisy tokens", "line", "tree", "tree, TPF"):
        table.add_column(column)
    for row in rows:
        line, tree = row["line"], row["tree"]
        table.add_row(
            row["recipe"],
            f"{row['steps']:.0f}",
            f"{row['seconds']:.0f}",
            f"{row['noisy_tokens']:.0f}",
            f"{line['all']:.2f}",
            f"{tree['all']:.2f}",
            f"{tree['tokens_per_forward']:.2f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data-file", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, default=600.0)
    budget.add_argument("--noisy-tokens", type=int)
    parser.add_argument("--max-steps", type=int, default=1_000_000)
    parser.add_argument("--set", action="append", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--block-length", type=int, default=16)
    arguments = parser.parse_args()
    kind = "seconds" if arguments.noisy_tokens is None else "noisy_tokens"
    amount = arguments.seconds if kind == "seconds" else arguments.noisy_tokens
    sets = prompt_sets(arguments.data, arguments.prompts)
    options = {"max_tokens": arguments.max_tokens, "block_length": arguments.block_length}
    rows = []
    for name, config in configurations(arguments).items():
        if not trained(config, kind, amount):
            raise SystemExit("interrupted; the same command continues")
        run = Path(config.output)
        precision = json.loads((run / "config.json").read_text())["config"]["precision"]
        rows.append(
            {"recipe": name, "precision": precision, **spent(run)} | scored(config, sets, options)
        )
    show(rows, f"linear acceptance length after at most {amount:g} {kind.replace('_', ' ')} each")
    save("recipes", {**header(), **options, kind: amount, "recipes": rows})


if __name__ == "__main__":
    main()
