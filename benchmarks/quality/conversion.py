"""What a converted model gains: acceptance, tokens a pass, and diffusion's quality by threshold.

    python benchmarks/quality/conversion.py --data data --adapter DIR
        [--prompts 20] [--sets instructions] [--max-tokens 128] [--block-length 16]
        [--commit-rule threshold] [--spare-drafts 2] [--name NAME] [--thresholds 0.5 0.9]
        [--no-markov-head] [--form fixed] [--max-denoising-steps 2] [--revision-threshold 0.3]
        [--acceptance | --skip-speculation]

The prompts are self_instruct user instructions, GSM8K test and HumanEval, `--prompts` of each. The
model was not trained on them and did not sample them. Temperature 0.

Perplexity ratio: AR perplexity of the diffusion answer / that of AR's own greedy answer, over all
answers together. Agreement: share of the answer's tokens that AR would choose after the same
prefix.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.forms import FORMS
from benchmarks.lib.machine import header, results, save
from benchmarks.lib.prompts import prompt_sets
from benchmarks.lib.scoring import score, together
from trimode import LoadedModel, generate_batch, load
from trimode.engine import GenerationResult, encode_prompt

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def drafting(model: LoadedModel, block_length: int) -> list[tuple[str, int, bool]]:
    """Lossless modes, block lengths, and whether drafts are trees; `linear` by default first."""
    linear = [("linear", block_length, False)]
    if model.config.draft_form == "led":  # a seeded draft has no tree
        linear.insert(0, ("linear", block_length, True))
    # A line of 16 is as slow as the tree in quadratic, and its last places are never reached.
    return [*linear, ("quadratic", 8, False), ("quadratic", 8, True), ("quadratic", 16, True)]


def speculation(
    model: LoadedModel,
    prompts: list[list[int]],
    greedy: list,
    options: dict,
    runs: Sequence[tuple[str, int, bool]],
) -> dict:
    """Acceptance and tokens a pass of lossless modes, and how many answers equal AR's."""
    row: dict = {}
    for mode, block_length, tree in runs:
        asked = {**options, "mode": mode, "block_length": block_length, "draft_tree": tree}
        found = generate_batch(model, prompts, **asked)
        stats = together(found)
        pairs = zip(found, greedy, strict=True)
        row[f"{mode} {block_length} {'tree' if tree else 'line'}"] = {
            "mode": mode,
            "draft_tree": tree,
            "block_length": block_length,
            "acceptance_length": round(stats.acceptance_length or 0.0, 3),
            "tokens_per_forward": round(stats.tokens_per_forward, 3),
            "equal_to_ar": sum(ours.token_ids == ar.token_ids for ours, ar in pairs),
            "answers": len(found),
        }
    return row


def threshold_curve(
    model: LoadedModel,
    prompts: list[list[int]],
    greedy: list,
    options: dict,
    thresholds: Sequence[float],
) -> list[dict]:
    """Diffusion's tokens a pass and quality at each threshold."""

    def total(results: list[GenerationResult]) -> tuple[float, int, int]:
        pairs = [score(model, p, list(r.token_ids)) for p, r in zip(prompts, results, strict=True)]
        count = sum(len(r.token_ids) for r in results)
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs), count

    loss, _, count = total(greedy)
    reference = loss / count
    curve = []
    for threshold in track(thresholds, "thresholds", console=Console(stderr=True), transient=True):
        found = generate_batch(model, prompts, mode="diffusion", threshold=threshold, **options)
        loss, agreed, count = total(found)
        curve.append(
            {
                "threshold": threshold,
                "tokens_per_forward": round(together(found).tokens_per_forward, 3),
                "perplexity_ratio": round(math.exp(loss / count - reference), 3),
                "agreement": round(agreed / count, 3),
            }
        )
    return curve


def plot(curve: list[dict], path: Path) -> None:
    """Tokens a pass against quality."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    x = [row["tokens_per_forward"] for row in curve]
    for axis, name in ((left, "perplexity_ratio"), (right, "agreement")):
        y = [row[name] for row in curve]
        axis.plot(x, y, "o-")
        for row, a, b in zip(curve, x, y, strict=True):
            axis.annotate(
                f"{row['threshold']:g}", (a, b), textcoords="offset points", xytext=(4, 4)
            )
        axis.set_xlabel("tokens per forward pass")
        axis.set_ylabel(name.replace("_", " "))
        axis.grid(alpha=0.3)
    figure.suptitle("diffusion by threshold")
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=120)
    figure.savefig(path.with_suffix(".svg"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--adapter")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--sets", nargs="+", choices=("instructions", "gsm8k", "humaneval"))
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--block-length", type=int, default=16)
    parser.add_argument("--commit-rule", default="threshold")
    parser.add_argument("--spare-drafts", type=int, help="of diffusion, in a rolling block")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--skip-speculation", action="store_true")
    parts.add_argument("--acceptance", action="store_true", help="that of linear, and nothing else")
    parser.add_argument("--revision-threshold", type=float, help="of diffusion")
    parser.add_argument("--no-markov-head", action="store_true", help="as if it had none")
    parser.add_argument("--max-denoising-steps", type=int, help="of diffusion, in a fixed block")
    parser.add_argument("--form", choices=FORMS, help="of diffusion; the model's own if not given")
    parser.add_argument("--name", default="conversion")
    arguments = parser.parse_args()
    model = load(arguments.model, dtype=arguments.dtype, adapter=arguments.adapter, progress=False)
    if arguments.no_markov_head:
        model = replace(model, markov_head=None)
    options = {"max_tokens": arguments.max_tokens, "block_length": arguments.block_length}
    sets = prompt_sets(arguments.data, arguments.prompts)
    if arguments.sets:
        sets = {name: sets[name] for name in arguments.sets}
    encoded = {name: [encode_prompt(model, t) for t in texts] for name, texts in sets.items()}
    encoded["all"] = [prompt for prompts in encoded.values() for prompt in prompts]
    everything = generate_batch(model, encoded["all"], max_tokens=arguments.max_tokens)
    runs = drafting(model, arguments.block_length)[: 1 if arguments.acceptance else None]
    by_set, start = {}, 0
    table = Table(title=f"{arguments.prompts} prompts a set, {arguments.max_tokens} tokens, T 0")
    for column in ("prompts", "mode", "block", "acceptance", "TPF", "equal to ar"):
        table.add_column(column)
    for name, prompts in encoded.items():
        if name == "all" or arguments.skip_speculation:
            continue
        greedy = everything[start : start + len(prompts)]
        start += len(prompts)
        by_set[name] = speculation(model, prompts, greedy, options, runs)
        for row in by_set[name].values():
            table.add_row(
                name,
                row["mode"] + (", tree" if row["draft_tree"] else ", line"),
                str(row["block_length"]),
                f"{row['acceptance_length']:.2f}",
                f"{row['tokens_per_forward']:.2f}",
                f"{row['equal_to_ar']}/{row['answers']}",
            )
    console = Console()
    console.print(table)
    result = {
        **header(),
        **options,
        "prompts": arguments.prompts,
        "markov_head": model.markov_head is not None,
        "speculation": by_set,
    }
    if arguments.acceptance:
        save(arguments.name, result)
        return
    asked = {
        **options,
        "commit_rule": arguments.commit_rule,
        "spare_drafts": arguments.spare_drafts,
        "revision_threshold": arguments.revision_threshold,
        "max_denoising_steps": arguments.max_denoising_steps,
        **FORMS.get(arguments.form, {}),
    }
    curve = threshold_curve(model, encoded["all"], everything, asked, arguments.thresholds)
    shown = Table(title=f"diffusion, {', '.join(sets)}")
    for column in ("threshold", "TPF", "perplexity ratio", "agreement"):
        shown.add_column(column)
    for row in curve:
        shown.add_row(*(f"{value:g}" for value in row.values()))
    console.print(shown)
    save(arguments.name, {**result, **asked, "diffusion": curve})
    plot(curve, results() / arguments.name)


if __name__ == "__main__":
    main()
