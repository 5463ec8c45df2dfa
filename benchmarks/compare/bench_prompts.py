"""Prompts that no model here was trained on, as a user of `trimode bench` would bring them.

    python benchmarks/compare/bench_prompts.py --data data --output prompts.csv
    trimode bench prompts.csv --reference-column expected --budget 170s --concurrency 1
        --block-lengths 4

120 questions of GSM8K's test set with their answers, and 80 user instructions of self_instruct.
"""

import argparse
import csv
import json
import random
from pathlib import Path

from benchmarks.lib.data import data_file
from benchmarks.lib.prompts import texts

QUESTIONS, INSTRUCTIONS = 120, 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    lines = data_file(arguments.data, "gsm8k/test.jsonl").read_text().splitlines()
    questions = random.Random(3).sample([json.loads(line) for line in lines], QUESTIONS)
    rows: list[tuple[object, ...]] = [
        (i, row["question"], row["answer"].split("####")[-1].strip(), "math")
        for i, row in enumerate(questions)
    ]
    instructions = texts(arguments.data, "instructions")[:INSTRUCTIONS]
    rows += [(1000 + i, text, "", "text") for i, text in enumerate(instructions)]
    with arguments.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("ticket", "question", "expected", "team"))
        writer.writerows(rows)
    print(f"{len(rows)} prompts")


if __name__ == "__main__":
    main()
