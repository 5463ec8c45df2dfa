"""How often `linear` and `quadratic` differ from `ar` on real prompts, and by what logit gap.

    python benchmarks/quality/lossless.py --data data [--prompts 200] [--temperature 0.8]
        [--only "all modes mixed" "each alone"]

Every prompt runs in `ar`, and in `linear` and `quadratic` at each block length, packed with others
of its mode. Then it runs in one mode and length, packed with others of every mode, and alone.
A difference is a flip: the verifier's two best logits were nearly tied at the first token that
differs. The gap there (recomputed by a fresh prefill) is printed for each.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.lib.machine import header, results, save
from benchmarks.lib.prompts import mixed_prompts
from trimode import load
from trimode.engine import encode_prompt
from trimode.evaluation import lossless

BLOCK_LENGTHS = (1, 2, 5, 8, 16, 32)
QUADRATIC_SHARE = {8: 4, 16: 10, 32: 40}
"""A quadratic pass has B(B+1) rows: at these lengths only one prompt in so many is run."""


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
    texts = mixed_prompts(arguments.data, arguments.prompts)
    prompts = [encode_prompt(model, text)[:1024] for text in texts]

    wanted = lossless.runs(
        len(prompts),
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        block_lengths=BLOCK_LENGTHS,
        tree_share=lambda length: QUADRATIC_SHARE.get(length, 1),
    )
    name = f"lossless_{arguments.dtype}_T{arguments.temperature:g}"
    asked_for = {"prompts": len(prompts), "max_tokens": arguments.max_tokens,
                 "temperature": arguments.temperature}  # fmt: skip
    rows = []
    if arguments.only:
        wanted = [run for run in wanted if run.name in ("ar", *arguments.only)]
        rows = earlier(name, asked_for, arguments.only)

    console = Console()
    table = Table(
        title=f"{len(prompts)} prompts, {arguments.max_tokens} tokens, T {arguments.temperature}"
    )
    for column in ("run", "equal to ar", "tokens", "flips: prompt, token, logit gap"):
        table.add_column(column)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ar", total=sum(len(run.options) for run in wanted))

        def advance(run: str) -> None:
            progress.update(task, advance=1, description=run)

        for outcome in lossless.check(model, prompts, wanted, advance=advance):
            if outcome.name == "ar":
                continue
            flips = [asdict(flip) for flip in outcome.flips]
            rows.append({"run": outcome.name, "prompts": outcome.answers, "flips": flips})
            listed = "; ".join(f"{f.prompt}, {f.token}, {f.logit_gap:.1e}" for f in outcome.flips)
            equal = f"{outcome.answers - len(flips)}/{outcome.answers}"
            table.add_row(outcome.name, equal, str(outcome.tokens), listed)
            console.print(f"{outcome.name}: {equal} equal", highlight=False)
            save(name, {**header(), **asked_for, "runs": rows})  # the rest: --only
    console.print(table)
    total, flips = sum(row["prompts"] for row in rows), sum(len(row["flips"]) for row in rows)
    console.print(f"{flips} flips in {total} answers of all runs")


def earlier(name: str, asked_for: dict, only: list[str]) -> list[dict]:
    """Results of other runs that an earlier call with the same settings saved."""
    path = results() / f"{name}.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if any(found[key] != value for key, value in asked_for.items()):
        raise SystemExit(f"{path}: made with other settings; run without --only")
    return [row for row in found["runs"] if row["run"] not in only]


if __name__ == "__main__":
    main()
