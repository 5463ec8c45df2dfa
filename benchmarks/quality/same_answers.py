"""Whether a change of the code changes answers to 50 real prompts in many settings.

    python benchmarks/quality/same_answers.py --data data --write before.json
    python benchmarks/quality/same_answers.py --data data --compare before.json
        [--write after.json] [--only "ar" "linear 8"] [--dtype int8]

Use it for refactorings, which must not change a bit. It keeps the token ids of each answer, its
passes, cycles and revisions, and why it ended. If an answer differs from the earlier file, it names
the first such prompt and token and exits with 1. `auto` is not among the settings, since its
choices depend on times. Compare files of one machine, since floats round differently on another.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.lib.prompts import texts
from trimode import LoadedModel, load
from trimode.config import GenerationOptions
from trimode.engine import Engine, drain, encode_prompt

COUNTS = {"gsm8k": 15, "humaneval": 10, "instructions": 15, "ifeval": 10}
"""The first prompts of each set."""
MAX_TOKENS = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "ar": {"mode": "ar"},
    "ar T": {"mode": "ar", "temperature": 0.8},
    "linear": {"mode": "linear"},
    "linear 8": {"mode": "linear", "block_length": 8},
    "linear line": {"mode": "linear", "block_length": 8, "draft_tree": False},
    "linear seeded": {"mode": "linear", "block_length": 8, "seed_block": True},
    "linear 0.9": {"mode": "linear", "block_length": 8, "threshold": 0.9},
    "linear seeded 0.9": {
        "mode": "linear", "block_length": 8, "seed_block": True, "threshold": 0.9,
    },
    "linear T": {"mode": "linear", "block_length": 8, "temperature": 0.8},
    "quadratic 4": {"mode": "quadratic", "block_length": 4},
    "quadratic line": {"mode": "quadratic", "block_length": 4, "draft_tree": False},
    "diffusion": {"mode": "diffusion"},
    "diffusion T": {"mode": "diffusion", "temperature": 0.8},
    "diffusion 0.5": {"mode": "diffusion", "threshold": 0.5},
    "diffusion fixed": {"mode": "diffusion", "rolling_block": False},
    "diffusion fixed 0.7 rev": {
        "mode": "diffusion", "rolling_block": False, "threshold": 0.7, "revision_threshold": 0.2,
    },
    "diffusion entropy": {"mode": "diffusion", "commit_rule": "entropy"},
    "diffusion quota fixed": {
        "mode": "diffusion", "rolling_block": False, "commit_rule": "quota",
        "max_denoising_steps": 8,
    },
    "diffusion allmask": {"mode": "diffusion", "seed_block": False},
    "diffusion factor rolling": {"mode": "diffusion", "commit_rule": "factor"},
    "diffusion margin rev": {
        "mode": "diffusion", "rolling_block": False, "commit_rule": "margin",
        "revision_threshold": 0.1,
    },
}  # fmt: skip

Answer = list[Any]
"""Token ids, NFE, cycles, revisions, finish reason."""


def answers(
    model: LoadedModel, prompts: Sequence[Sequence[int]], setting: dict[str, Any]
) -> list[Answer]:
    """The answers in one setting; prompt i has the seed i."""
    engine = Engine(model, max_sequences=16)
    asked = [
        GenerationOptions.from_mapping({"max_tokens": MAX_TOKENS, "seed": seed, **setting})
        for seed in range(len(prompts))
    ]
    sequences = [engine.add(tuple(p), o) for p, o in zip(prompts, asked, strict=True)]
    for _ in drain(engine):
        pass
    return [
        [s.tokens, s.stats.nfe, s.stats.cycles, s.stats.revisions, str(s.finish_reason)]
        for s in sequences
    ]


def difference(ours: list[Answer], theirs: list[Answer]) -> str:
    """What differs first, or nothing."""
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if mine[0] != other[0]:
            pairs = zip(mine[0], other[0], strict=False)
            shorter = min(len(mine[0]), len(other[0]))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
            return f"prompt {number}, token {at}"
        for name, a, b in zip(
            ("NFE", "cycles", "revisions", "finish reason"), mine[1:], other[1:], strict=True
        ):
            if a != b:
                return f"prompt {number}, {name}: {a}, was {b}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", type=Path, help="file for the answers")
    parser.add_argument("--compare", type=Path, help="file that an earlier run wrote")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="int8")
    arguments = parser.parse_args()
    if not arguments.write and not arguments.compare:
        parser.error("--write or --compare is needed")
    earlier = json.loads(arguments.compare.read_text()) if arguments.compare else {}
    if arguments.compare and (missing := set(arguments.only) - set(earlier)):
        parser.error(f"{arguments.compare} lacks {', '.join(sorted(missing))}")
    model = load(arguments.model, dtype=arguments.dtype, progress=False)
    chosen = [text for name, n in COUNTS.items() for text in texts(arguments.data, name)[:n]]
    prompts = [encode_prompt(model, text) for text in chosen]
    console, found, different = Console(), {}, 0
    for name in track(arguments.only, "settings", console=Console(stderr=True), transient=True):
        found[name] = answers(model, prompts, SETTINGS[name])
        tokens, passes = (
            sum(column) for column in zip(*((len(a[0]), a[1]) for a in found[name]), strict=True)
        )
        verdict = ""
        if arguments.compare:
            where = difference(found[name], earlier[name])
            different += bool(where)
            verdict = f": DIFFERENT, {where}" if where else ": the same"
        console.print(f"{name}, {tokens} tokens, {passes} passes{verdict}", highlight=False)
    if arguments.write:
        arguments.write.write_text(json.dumps(found) + "\n")
    if different:
        raise SystemExit(f"{different} of {len(found)} settings differ")


if __name__ == "__main__":
    main()
