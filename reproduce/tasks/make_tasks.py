"""Tasks with checkable answers, small enough for a 135M model.

    python reproduce/tasks/make_tasks.py --output tasks [--train 6000] [--test 300]

Writes train.jsonl and test.jsonl with `prompt`, `completion`, `task`. Tasks of `reasoning-gym`:
keep the numbers of a list that pass a condition, reverse a list of words, sort numbers, add
numbers. Tasks of ours: write a record as JSON, write a short Python function. Seeds of train and
test differ. No prompt of the test set is in the training set.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import reasoning_gym

GYM = {
    "number_filtering": {"min_numbers": 4, "max_numbers": 8, "max_decimals": 0},
    "word_sequence_reversal": {"min_words": 4, "max_words": 8},
    "number_sorting": {"min_numbers": 4, "max_numbers": 7, "max_decimals": 0},
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2},
}
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo June Kai Lea Max Nora Otto Pia Quin Rosa Sam Tess"
CITIES = "Oslo Lima Cairo Kyoto Paris Quito Delhi Turin Leeds Miami Perth Accra Basel Dakar Hanoi"
JOBS = "baker pilot nurse farmer painter lawyer waiter singer teacher plumber dentist gardener"
VERBS = {"add": "+", "subtract": "-", "multiply by": "*"}


def gym(name: str) -> Callable[[int], tuple[str, str]]:
    """Instances of a reasoning-gym task by number."""
    tasks = reasoning_gym.create_dataset(name, size=10**9, seed=0, **GYM[name])

    def make(number: int) -> tuple[str, str]:
        row = tasks[number]
        # Sorting explains at length how to write a list; the answers show it.
        return row["question"].partition("\nPlease follow")[0].strip(), row["answer"]

    return make


def record(number: int) -> tuple[str, str]:
    """A sentence about a person; the answer is JSON."""
    draw = random.Random(f"record {number}")
    fields = {
        "name": draw.choice(NAMES.split()),
        "age": draw.randint(18, 90),
        "city": draw.choice(CITIES.split()),
        "job": draw.choice(JOBS.split()),
    }
    forms = (
        "{name} is {age} years old, lives in {city} and works as a {job}.",
        "A {job} from {city}, {name} turned {age} this year.",
        "In {city} there is a {job} named {name}, aged {age}.",
    )
    text = draw.choice(forms).format(**fields)
    chosen = draw.sample(list(fields), draw.randint(3, 4))
    prompt = f"Write as JSON with the keys {', '.join(chosen)}:\n{text}"
    return prompt, json.dumps({key: fields[key] for key in chosen})


def function(number: int) -> tuple[str, str]:
    """A Python function of one argument in one or two arithmetic steps."""
    draw = random.Random(f"function {number}")
    steps = [(draw.choice(list(VERBS)), draw.randint(2, 99)) for _ in range(draw.randint(1, 2))]
    name = draw.choice(("change", "compute", "update", "transform", "convert", "step"))
    words = ", then ".join(f"{verb} {amount}" for verb, amount in steps)
    lines = [f"    x = x {VERBS[verb]} {amount}" for verb, amount in steps]
    code = "\n".join((f"def {name}(x):", *lines, "    return x"))
    return f"Write a Python function {name}(x): {words}, and return the result.", code


MAKERS: dict[str, Callable[[int], tuple[str, str]]] = {
    **{name: gym(name) for name in GYM},
    "record": record,
    "function": function,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=6000)
    parser.add_argument("--test", type=int, default=300)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for part, count, first in (("test", arguments.test, 10**8), ("train", arguments.train, 0)):
        lines = []
        number = first
        while len(lines) < count:
            task = list(MAKERS)[len(lines) % len(MAKERS)]
            prompt, completion = MAKERS[task](number)
            number += 1
            if prompt in seen:
                continue
            seen.add(prompt)
            row = {"prompt": prompt, "completion": completion, "task": task}
            lines.append(json.dumps(row) + "\n")
        (arguments.output / f"{part}.jsonl").write_text("".join(lines))
    print(f"{arguments.train} + {arguments.test} in {arguments.output}")


if __name__ == "__main__":
    main()
