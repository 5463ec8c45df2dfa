"""Accuracy and tokens a pass of a task model in every mode.

    python reproduce/tasks/score.py --model DIR --tasks tasks/test.jsonl [--limit 300]
        [--dtype int8] [--block-length 16] [--name NAME]

An answer counts if it is right, also if it is spelled in another way: JSON is compared as data, a
function by running it, a list without regard to spaces. Temperature 0.
"""

import argparse
import ast
import contextlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.lib.forms import FORMS
from benchmarks.lib.machine import header, save
from trimode import LoadedModel, generate_batch, load
from trimode.decoding import Stats, modes_reading


def _diffusion(form: str, **fields: Any) -> dict[str, Any]:
    return {"mode": "diffusion", **FORMS[form], **fields}


RUNS: list[tuple[str, dict[str, Any]]] = [
    ("ar", {"mode": "ar"}),
    ("linear", {"mode": "linear"}),
    ("linear seeded", {"mode": "linear", "seed_block": True}),
    ("linear tree", {"mode": "linear", "seed_block": False, "draft_tree": True}),
    ("quadratic", {"mode": "quadratic", "block_length": 8}),
    ("diffusion", {"mode": "diffusion"}),
    *(
        (f"rolling {bar}", _diffusion("rolling", threshold=bar))
        for bar in (0.05, 0.15, 0.3, 0.5, 0.7, 0.9, 0.99)
    ),
    ("rolling, revision 0.3", _diffusion("rolling", revision_threshold=0.3)),
    # A fixed block of the led form: the first pass of the next one closes it.
    *((f"fixed {bar}", _diffusion("fixed", threshold=bar)) for bar in (0.1, 0.3, 0.5, 0.7, 0.9)),
    *(
        (
            f"fixed, {passes} passes, revision {revision}",
            _diffusion(
                "fixed",
                threshold=0.9,
                max_denoising_steps=passes,
                revision_threshold=revision,
            ),
        )
        for passes in (1, 2, 3)
        for revision in (0.15, 0.3)
    ),
    # NLD's: the block begins with AR's token, and a pass of its own closes it.
    *((f"nld {bar}", _diffusion("nld", threshold=bar)) for bar in (0.5, 0.7, 0.9, 0.99)),
    *(
        (
            f"nld {bar}, revision 0.15",
            _diffusion("nld", threshold=bar, revision_threshold=0.15),
        )
        for bar in (0.1, 0.3, 0.5, 0.7, 0.9)
    ),
    *(
        (
            f"nld, {passes} passes, revision {revision}",
            _diffusion(
                "nld",
                threshold=0.9,
                max_denoising_steps=passes,
                revision_threshold=revision,
            ),
        )
        for passes in (1, 2, 3)
        for revision in (0.15, 0.3)
    ),
]


def is_right(task: str, answer: str, expected: str) -> bool:
    """Whether an answer solves its instance."""
    answer = answer.strip()
    if task == "record":
        with contextlib.suppress(ValueError):
            return json.loads(answer) == json.loads(expected)
        return False
    if task == "function":
        return _values(answer) == _values(expected)
    if task in ("number_filtering", "number_sorting"):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(answer) == ast.literal_eval(expected)
        return False
    return answer.split() == expected.split()


def _values(code: str) -> list | None:
    """What a function of one number returns for a few; None if it cannot be run.

    Only straight-line arithmetic is run: a model's code is not trusted.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    allowed = (ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Return,
               ast.AugAssign, ast.BinOp, ast.Name, ast.Load, ast.Store, ast.Constant, ast.Add,
               ast.Sub, ast.Mult, ast.UnaryOp, ast.USub)  # fmt: skip
    if not all(isinstance(node, allowed) for node in ast.walk(tree)):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        return None
    space: dict = {"__builtins__": {}}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(tree, "answer", "exec"), space)
            return [space[tree.body[0].name](x) for x in (-7, 0, 3, 12)]
    except Exception:  # noqa: BLE001 - any failure is a wrong answer
        return None


def run(model: LoadedModel, rows: list[dict], fields: dict) -> dict:
    """Accuracy overall and by task, TPF and acceptance length."""
    results = generate_batch(model, [row["prompt"] for row in rows], max_tokens=96, **fields)
    right = defaultdict(list)
    for row, result in zip(rows, results, strict=True):
        right[row["task"]].append(is_right(row["task"], result.text, row["completion"]))
    stats = Stats.pooled(result.stats for result in results)
    accepted = stats.acceptance_length
    return {
        "accuracy": round(sum(map(sum, right.values())) / len(rows), 4),
        "by_task": {task: round(sum(found) / len(found), 4) for task, found in right.items()},
        "tokens_per_forward": round(stats.tokens_per_forward, 3),
        "acceptance_length": None if accepted is None else round(accepted, 3),
    }


def _with_block_length(fields: dict, block_length: int) -> dict:
    """Fields of a run, with a block length if its mode reads one and none is given."""
    if fields["mode"] not in modes_reading("block_length"):
        return fields
    return {"block_length": block_length, **fields}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument(
        "--modes", nargs="+", help="names of runs: ar, linear, diffusion, 'nld 0.9', ..."
    )
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--block-length", type=int, default=16, help="8 for quadratic")
    parser.add_argument("--name", default="tasks")
    arguments = parser.parse_args()
    model = load(arguments.model, dtype=arguments.dtype, progress=False)
    rows = [json.loads(line) for line in arguments.tasks.read_text().splitlines()]
    rows = rows[: arguments.limit]
    chosen = [r for r in RUNS if not arguments.modes or r[0] in arguments.modes]
    console = Console(stderr=True)
    found = {
        name: run(model, rows, _with_block_length(fields, arguments.block_length))
        for name, fields in track(chosen, "modes", console=console, transient=True)
    }
    tasks = sorted({row["task"] for row in rows})
    table = Table("mode", "accuracy", "TPF", "acceptance", *tasks)
    for name, row in found.items():
        accepted = row["acceptance_length"]
        table.add_row(
            name,
            f"{row['accuracy']:.1%}",
            f"{row['tokens_per_forward']:.2f}",
            "" if accepted is None else f"{accepted:.2f}",
            *(f"{row['by_task'][task]:.0%}" for task in tasks),
        )
    Console(width=120).print(table)
    save(
        arguments.name,
        {**header(), "answers": len(rows), "block_length": arguments.block_length, "runs": found},
    )


if __name__ == "__main__":
    main()
