"""`trimode verify`: does this model, on this machine, keep the lossless promise?"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped

_TEXTS = (
    "Write three short sentences about the sea.",
    "What is 17 + 25? Explain step by step.",
    "Write a Python function that reverses a string.",
    "Translate to French: Where is the station?",
    "List the planets of the solar system, one a line.",
    "Rewrite as JSON: name Anna, age 31, city Oslo.",
    "Why is the sky blue?",
    "Continue: 1, 1, 2, 3, 5, 8,",
    "Write an email that asks for a day off.",
    "Summarise the story of Romeo and Juliet in two sentences.",
    "What does this do? for i in range(3): print(i * i)",
    "Name five animals that live in the desert.",
    "Give me a recipe for pancakes.",
    "Repeat the word tree ten times.",
    "Who wrote Hamlet, and when?",
    "Explain what a hash table is to a child.",
)


@grouped
def verify(
    name: opt.ModelArgument = None,
    *,
    model: opt.ModelOptions,
    input_file: Annotated[
        Path | None,
        typer.Option("--input", help="Rows with a prompt each; a few of ours by default."),
    ] = None,
    max_tokens: opt.MaxTokens = 32,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Compare every lossless mode with ar.

    Greedy and sampled, packed and alone. The exit code is 1 if an answer differs. In int8 none
    does. Floats round: there an answer differs now and then, if two logits were nearly tied.
    """
    texts = _TEXTS if input_file is None else _read(input_file)
    loaded = opt.load_model(model.named(name), progress=not no_progress)
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from trimode.engine import encode_prompt
    from trimode.evaluation import lossless

    prompts = [encode_prompt(loaded, text) for text in texts]
    independent = lossless.rows_are_independent(loaded, max(prompts, key=len)[:256])
    outcomes = []
    stderr = Console(stderr=True)
    with Progress(console=stderr, transient=True, disable=no_progress) as progress:
        for temperature in (0.0, 0.8):
            wanted = lossless.runs(len(prompts), max_tokens=max_tokens, temperature=temperature)
            if loaded.config.mask_token_id is None:
                wanted = [run for run in wanted if run.name in ("ar", "auto")]
            total = sum(len(run.options) for run in wanted)
            task = progress.add_task(f"temperature {temperature:g}", total=total)

            def advance(run: str, task=task) -> None:  # noqa: ANN001 - rich's own id type
                progress.update(task, advance=1, description=run)

            found = lossless.check(loaded, prompts, wanted, advance=advance)
            outcomes += [(temperature, outcome) for outcome in found]
    answers = sum(outcome.answers for _, outcome in outcomes)
    flips = sum(len(outcome.flips) for _, outcome in outcomes)
    facts = {
        "model": loaded.name,
        "kernel": loaded.runner.format.name,
        "rows_independent": independent,
        "answers": answers,
        "different": flips,
    }
    if json_output:
        found = [{"temperature": t, **asdict(outcome)} for t, outcome in outcomes]
        sys.stdout.write(json.dumps({**facts, "runs": found}) + "\n")
    else:
        table = Table(title=f"{loaded.name}, {facts['kernel']}, {len(prompts)} prompts")
        for column in ("temperature", "run", "equal to ar", "prompt, token, logit gap of the rest"):
            table.add_column(column)
        for temperature, outcome in outcomes:
            equal = f"{outcome.answers - len(outcome.flips)}/{outcome.answers}"
            listed = "; ".join(f"{f.prompt}, {f.token}, {f.logit_gap:.1e}" for f in outcome.flips)
            table.add_row(f"{temperature:g}", outcome.name, equal, listed)
        console = Console()
        console.print(table)
        same = "the same bits" if independent else "NOT the same bits"
        console.print(f"A token's logits alone, in chunks and at once: {same}.", highlight=False)
        verdict = "lossless" if not flips else "not lossless"
        console.print(f"{verdict}: {flips} of {answers} answers differ from ar.", highlight=False)
    if flips:
        raise typer.Exit(1)


def _read(path: Path) -> list[str]:
    from trimode.training.self_generate import read_prompts

    return read_prompts(opt.existing_file(path, "input"))
