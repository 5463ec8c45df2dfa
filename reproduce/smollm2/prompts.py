"""User turns for self-generation, from data that none of our benchmarks scores.

    python reproduce/smollm2/prompts.py --data data --output prompts.jsonl

GSM8K train, MBPP outside the scored task ids (as a request and as a function to complete),
self_instruct seed tasks and FLAN chain-of-thought questions, shuffled with a fixed seed.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from benchmarks.lib.data import SOURCES, data_file

SCORED_MBPP = range(11, 511)
SHARES = {"gsm8k": 1400, "flan": 300}
"""How many prompts to draw; the other sets are taken whole."""


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def gsm8k(data: Path) -> Iterator[str]:
    for row in rows(data_file(data, "gsm8k/train.jsonl")):
        yield row["question"]


def mbpp(data: Path) -> Iterator[str]:
    for row in rows(data_file(data, "mbpp/mbpp.jsonl")):
        if row["task_id"] in SCORED_MBPP:
            continue
        yield row["text"]
        code = row["code"].replace("\r\n", "\n")
        head = next((line for line in code.split("\n") if line.startswith("def ")), None)
        if head is not None:
            tests = "\n    ".join(row["test_list"][:2])
            yield f'{head.rstrip()}\n    """{row["text"]}\n\n    {tests}\n    """\n'


def seeds(data: Path) -> Iterator[str]:
    for row in rows(data_file(data, "self_instruct/seed_tasks.jsonl")):
        yield "\n".join(filter(None, (row["instruction"], row["instances"][0]["input"])))


def flan(data: Path) -> Iterator[str]:
    for name in sorted(file.name for file in SOURCES["flan_cot"].files):
        for line in data_file(data, f"flan_cot/{name}").read_text().splitlines():
            yield line.split("\t")[0].replace("\\n", "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    shuffle = random.Random(0)
    prompts: list[str] = []
    for source in (gsm8k, mbpp, seeds, flan):
        found = [text for text in source(arguments.data) if len(text) < 1200]
        shuffle.shuffle(found)
        prompts += found[: SHARES.get(source.__name__, len(found))]
    shuffle.shuffle(prompts)
    lines = (json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in prompts)
    arguments.output.write_text("".join(lines), encoding="utf-8")
    print(f"{len(prompts)} prompts")


if __name__ == "__main__":
    main()
