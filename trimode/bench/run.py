"""A run: measures what is not measured yet, judges the answers, and records all of it."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimode.bench.answers import Answer
from trimode.bench.local import LocalTarget
from trimode.bench.quality import same
from trimode.bench.record import Record
from trimode.bench.search import Level, measure_level
from trimode.bench.settings import Setting, baseline_of
from trimode.bench.summary import Measured, Results
from trimode.bench.target import Target
from trimode.checkpoints import LoadedModel
from trimode.config import GenerationOptions
from trimode.engine.score import score
from trimode.errors import InputError
from trimode.evaluation.scoring import Scorer
from trimode.workload import Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be measured."""

    lines: Sequence[Line]
    """Of the workload, sampled."""
    settings: Sequence[Setting]
    repeats: int
    budget: float | None
    """Seconds of measuring; None: everything."""
    seed: int
    scorer: Scorer | None = None
    advance: Callable[[str, float, float | None], None] = lambda *_: None
    """Told what is done, the share that is done, and the seconds left, if known."""


def sample(lines: Sequence[Line], count: int | None, seed: int) -> list[Line]:
    """A random part of a workload, in its own order.

    Raises:
        InputError: fewer than one are wanted.
    """
    if count is None or count >= len(lines):
        return list(lines)
    if count < 1:
        raise InputError("sample", str(count), "must be at least 1")
    chosen = sorted(random.Random(seed).sample(range(len(lines)), count))
    return [lines[i] for i in chosen]


@dataclass(slots=True)
class Fit:
    """What can be run of a plan: the prompts and settings of this process that are not refused."""

    settings: list[Setting]
    left_out: dict[Setting, InputError] = field(default_factory=dict)
    """Settings that no prompt can be answered in."""
    skipped: dict[int, str] = field(default_factory=dict)
    """Prompts that some setting refuses, and why; all settings must answer the same ones."""


def fit(target: LocalTarget, settings: Sequence[Setting], prompts: Sequence[int]) -> Fit:
    """Find out what the model can run, before anything is measured.

    Args:
        target: our engine.
        settings: of it.
        prompts: numbers of all prompts.
    """
    found = Fit([])
    refusals = {setting: target.refusals(setting) for setting in settings}
    for setting in settings:
        refused = refusals[setting]
        if prompts and len(refused) == len(prompts) and setting.mode != "ar":
            found.left_out[setting] = next(iter(refused.values()))
            continue
        found.settings.append(setting)
        for number, error in refused.items():
            found.skipped.setdefault(number, f"{setting.mode}: {error}")
    return found


def measure(
    plan: Plan, prompts: Sequence[int], targets: Mapping[str, Target], record: Record
) -> None:
    """Measure all loads.

    Args:
        plan: what to measure.
        prompts: numbers of those that can be answered.
        targets: by the name that settings have for them.
        record: takes everything.
    """
    order = list(prompts)
    random.Random(plan.seed).shuffle(order)
    loads = sorted({setting.concurrency for setting in plan.settings})
    left = plan.budget
    for i, load in enumerate(loads):
        settings = [s for s in plan.settings if s.concurrency == load]
        base = baseline_of(settings)
        budget = None if left is None else max(1.0, left / (len(loads) - i))
        for row in record.of_kind("level"):
            budget = row["budget"] if row["concurrency"] == load else budget
        level = Level(load, settings, base, budget)

        def advance(what: str, share: float, seconds: float | None, at: int = i) -> None:
            plan.advance(what, (at + share) / len(loads), seconds)

        measure_level(level, order, targets, record, repeats=plan.repeats, advance=advance)
        left = None if left is None else left - level.spent


def judge(
    plan: Plan,
    lines: Mapping[int, Line],
    encoded: Mapping[int, Sequence[int]],
    model: LoadedModel | None,
    record: Record,
) -> None:
    """Score the answers, and ask AR what it thinks of those that are not its own.

    Args:
        plan: with the scorer.
        lines: of the workload, by number.
        encoded: token ids of the prompts.
        model: ours, if it is loaded.
        record: has the answers, and takes the judgements.
    """
    results = Results(record.rows)
    if model is not None:
        for load in results.loads:
            base = results.baseline(load)
            for measured in results.at(load):
                _likelihoods(model, measured, base, encoded, record)
    if plan.scorer is not None:
        _scores(plan.scorer, results, lines, record)


def _likelihoods(
    model: LoadedModel,
    measured: Measured,
    base: Measured,
    encoded: Mapping[int, Sequence[int]],
    record: Record,
) -> None:
    """Record AR's likelihood of answers that differ from the baseline's, and of those."""
    known = {(row["setting"], row["prompt"]) for row in record.of_kind("likelihood")}
    for number, answer in measured.first.items():
        reference = base.first.get(number)
        if reference is None or same(answer, reference):
            continue
        for owner, each in ((measured, answer), (base, reference)):
            key = (owner.setting.key, number)
            if key in known or not each.token_ids:
                continue
            known.add(key)
            nll = _nll(model, encoded[number], each)
            row = {"kind": "likelihood", "setting": key[0], "prompt": number, "nll": nll}
            record.append([row | {"tokens": len(each.token_ids)}])


def _nll(model: LoadedModel, prompt: Sequence[int], answer: Answer) -> float:
    """Negative log-likelihood of an answer under AR, in nats."""
    tokens = [*prompt, *(answer.token_ids or ())]
    found = score(model, tokens, 0)[len(prompt) :]
    return -sum(one.logprob for one in found if one is not None)


def _scores(scorer: Scorer, results: Results, lines: Mapping[int, Line], record: Record) -> None:
    """Record what the scorer says of the first answer to each prompt; equal texts score once."""
    known = {(row["setting"], row["prompt"]) for row in record.of_kind("score")}
    values: dict[tuple[int, str], Any] = {}
    for key, measured in results.measured.items():
        for number, answer in measured.first.items():
            line = lines[number]
            if line.reference is None or (key, number) in known:
                continue
            if (number, answer.text) not in values:
                values[number, answer.text] = scorer(answer.text, line.reference, line.columns)
            found = values[number, answer.text]
            row = {"kind": "score", "setting": key, "prompt": number, "value": found.value}
            record.append([row | {"detail": found.detail}])


def prompt_rows(lines: Mapping[int, Line], skipped: Mapping[int, str]) -> list[dict[str, Any]]:
    """The rows of results.jsonl that say what was asked."""
    rows = []
    for number, line in lines.items():
        row: dict[str, Any] = {
            "kind": "prompt",
            "prompt": number,
            "line": line.number,
            "asked": line.prompt,
            "columns": dict(line.columns),
        }
        if line.form is not None:
            row["form"] = dict(line.form)
        if line.reference is not None:
            row["reference"] = line.reference
        if number in skipped:
            row["skipped"] = skipped[number]
        rows.append(row)
    return rows


def without_choice(options: GenerationOptions) -> GenerationOptions:
    """A row's options in mode `ar`: the run itself chooses what only some modes read."""
    from trimode.decoding import inherited

    return inherited(options, "ar")
