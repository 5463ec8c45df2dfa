"""Machines whose speeds are known, and results that they would leave."""

import math
import random

from trimode.bench.answers import Answer
from trimode.bench.record import Record
from trimode.bench.run import Plan, measure, prompt_rows
from trimode.bench.settings import LOCAL, Setting
from trimode.bench.summary import Results
from trimode.config import GenerationOptions
from trimode.workload import Line


class FakeTarget:
    """Answers at once, and says that it took what its speeds say."""

    def __init__(self, rates, *, noise=0.0, seed=0, stop_after=None, texts=None):
        """`rates`: tokens a second by setting; `stop_after`: groups until it is interrupted."""
        self.rates, self.noise, self.dice = rates, noise, random.Random(seed)
        self.stop_after, self.groups, self.texts = stop_after, [], texts or {}
        self.given_up = []

    gone = None

    def warm_up(self, setting, prompt):  # noqa: ARG002
        return 0.01

    def forget(self, setting):
        pass

    def measure(self, setting, prompts, round_, longest=math.inf):  # noqa: ARG002
        if self.stop_after is not None and len(self.groups) >= self.stop_after:
            raise KeyboardInterrupt
        self.groups.append((setting.key, tuple(prompts), round_))
        return [self.answer(setting, number) for number in prompts]

    def answer(self, setting, number):
        tokens = 20 + 13 * (number % 7)
        rate = self.rates[setting]
        rate = rate(number) if callable(rate) else rate
        seconds = tokens / rate * self.dice.lognormvariate(0, self.noise)
        ids = self.texts.get(setting, lambda n: list(range(20 + 13 * (n % 7))))(number)
        return Answer(
            prompt=number,
            sent=0.0,
            finished=seconds,
            share=seconds,
            chunks=[(seconds / 2, tokens // 2), (seconds, tokens - tokens // 2)],
            text=" ".join(map(str, ids)),
            token_ids=ids,
            tokens=tokens,
            prompt_tokens=5,
            finish_reason="stop",
            nfe=tokens,
        )


def local(mode, load=1, block=None, bar=None):
    return Setting(LOCAL, mode, load, block, bar)


def lines(count):
    return {i: Line(i + 1, f"prompt {i}", GenerationOptions(), {}) for i in range(count)}


HEADER = {
    "command": "trimode bench w.csv",
    "workload": "w.csv",
    "machine": {"cpu": "paper", "cores": 2},
    "model": {"model": "m", "dtype": "auto", "device": "auto", "adapter": None},
    "models": {LOCAL: "m"},
}


def run(directory, rates, *, prompts=40, repeats=1, budget=None, seed=0, **fake):
    """Measure a fake machine; returns the results and the target."""
    settings = list(rates)
    target = FakeTarget(rates, seed=seed, **fake)
    record = Record(directory)
    facts = HEADER | {"settings": [setting.to_json() for setting in settings]}
    asked = lines(prompts)
    plan = Plan(
        lines=list(asked.values()), settings=settings, repeats=repeats, budget=budget, seed=0
    )
    if not record.begin({"repeats": repeats}, facts, anew=False):
        record.append(prompt_rows(asked, {}))
    measure(plan, list(asked), {LOCAL: target}, record)
    record.append([{"kind": "end"}])
    return Results(record.rows), target
