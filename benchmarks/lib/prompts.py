"""Prompts from data sets on this disk: real ones, which no model here was trained on."""

import gzip
import json
from pathlib import Path

from benchmarks.lib.data import data_file

_TEXTS = {
    "instructions": "self_instruct/user_oriented_instructions.jsonl",
    "gsm8k": "gsm8k/test.jsonl",
    "humaneval": "humaneval/HumanEval.jsonl.gz",
    "ifeval": "ifeval/input_data.jsonl",
    "mbpp": "mbpp/mbpp.jsonl",
}


def texts(folder: Path, name: str) -> list[str]:
    """All prompts of a data set, in its own order; SystemExit names a missing file.

    Args:
        folder: that holds a folder for each data set.
        name: instructions, gsm8k, humaneval, ifeval or mbpp.
    """
    path = data_file(folder, _TEXTS[name])
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
    match name:
        case "instructions":
            return [
                "\n".join(filter(None, (row["instruction"], row["instances"][0]["input"])))
                for row in rows
            ]
        case "gsm8k":
            return [row["question"] for row in rows]
        case "mbpp":
            return [row["text"] for row in rows]
        case _:
            return [row["prompt"] for row in rows]


def prompt_sets(folder: Path, count: int) -> dict[str, list[str]]:
    """As many prompts of each of three sets, evenly spread over it."""
    sets = {name: texts(folder, name) for name in ("instructions", "gsm8k", "humaneval")}
    return {name: found[:: len(found) // count][:count] for name, found in sets.items()}


def mixed_prompts(folder: Path, count: int) -> list[str]:
    """User instructions, GSM8K test questions, IFEval prompts and MBPP tasks, in turn."""
    sources = [texts(folder, name) for name in ("instructions", "gsm8k", "ifeval", "mbpp")]
    mixed = [text for group in zip(*sources, strict=False) for text in group]
    if len(mixed) < count:
        raise SystemExit(f"--prompts: {count} asked, {len(mixed)} available")
    return mixed[:count]
