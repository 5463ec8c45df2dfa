"""Which setting is measured when: side by side, and the promising ones longer.

A load is measured in rungs. In each, all settings that are left answer the same groups of prompts
in turn. After a rung the slower half is dropped, unless it may still be the faster one. Every
decision follows from what is recorded, so a run that was killed decides the same when it goes on.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimode.bench.answers import Answer
from trimode.bench.record import Record
from trimode.bench.settings import Setting
from trimode.bench.statistics import Interval, Pair, speedup
from trimode.bench.target import Target

_GROUP = 3
"""Prompts of a group at one request at a time: few, so that settings take turns often."""
_FINALISTS = 2
"""Settings beside the baseline that are measured to the end, if they can be told from the rest."""
_RECENT = 8
"""Groups of which the longest says how long the next one may take."""
HOPELESS = 2.5
"""A setting is dropped in its first group after so many times the seconds of the fastest one."""
_CLEARLY_SLOWER = 0.75
"""Share of the best setting's rate below which a setting is dropped without an interval."""


@dataclass(slots=True)
class Tally:
    """What a setting has answered so far, by group of prompts."""

    tokens: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    wall: list[float] = field(default_factory=list)
    """Seconds of each group that was measured."""

    def add(self, group: int, answers: Sequence[Answer], wall: float) -> None:
        """Count a group."""
        good = [answer for answer in answers if answer.error is None]
        self.tokens[group] = self.tokens.get(group, 0.0) + sum(a.tokens or 0 for a in good)
        self.seconds[group] = self.seconds.get(group, 0.0) + sum(a.share for a in answers)
        self.wall.append(wall)

    def over(self, base: "Tally") -> Interval | None:
        """Its rate over the baseline's on the groups that both have answered."""
        common = sorted(self.tokens.keys() & base.tokens.keys())
        pairs = [
            Pair(base.tokens[g], base.seconds[g], self.tokens[g], self.seconds[g]) for g in common
        ]
        return speedup(pairs, confidence=0.9) if pairs else None


@dataclass(slots=True)
class Level:
    """All settings of one load."""

    concurrency: int
    settings: Sequence[Setting]
    baseline: Setting
    budget: float | None
    """Seconds; None: everything is measured."""
    groups: Sequence[Sequence[int]] = ()
    tallies: dict[Setting, Tally] = field(default_factory=dict)
    warm_up: float = 0.0
    """Seconds before the first group."""
    given_up: dict[str, float] = field(default_factory=dict)
    """Settings, by key, that were much too slow in their first group, and the seconds they had."""

    @property
    def spent(self) -> float:
        """Seconds of all groups and of warming up."""
        measured = sum(sum(tally.wall) for tally in self.tallies.values())
        return self.warm_up + sum(self.given_up.values()) + measured


def measure_level(
    level: Level,
    prompts: Sequence[int],
    targets: Mapping[str, Target],
    record: Record,
    *,
    repeats: int,
    advance: Callable[[str, float, float | None], None],
) -> None:
    """Measure one load.

    Args:
        level: what to measure.
        prompts: numbers of the prompts, in the order in which they are asked.
        targets: by name.
        record: takes everything.
        repeats: how often each prompt is asked in each setting, if the budget allows.
        advance: told what is measured, the share that is done, and the seconds left, if known.
    """
    level.tallies = {setting: Tally() for setting in level.settings}
    level.groups = _groups(level, prompts, targets, record, repeats)
    keys = {setting.key for setting in level.settings}
    slow = [row for row in record.of_kind("slow") if row["setting"] in keys]
    level.given_up = {row["setting"]: row["seconds"] for row in slow}
    alive = [setting for setting in level.settings if setting.key not in level.given_up]
    passes = [(round_, group) for round_ in range(repeats) for group in range(len(level.groups))]
    rungs = _rungs(len(alive) - 1) if level.budget is not None else 1
    done = 0
    for rung in range(rungs):
        until = math.inf if level.budget is None else level.budget * (rung + 1) / rungs
        while done < len(passes):
            next_cycle = sum(max(level.tallies[s].wall[-_RECENT:], default=0.0) for s in alive)
            if done and level.spent + next_cycle > until:
                break
            if targets[level.baseline.target].gone:
                return
            _cycle(level, alive, passes[done], done, targets, record)
            alive = [setting for setting in alive if setting.key not in level.given_up]
            done += 1
            share, left = _progress(level, alive, done, len(passes))
            advance(f"load {level.concurrency}: {len(alive)} settings", share, left)
        if rung + 1 < rungs and done < len(passes):
            dropped = _dropped(level, alive, rung, record)
            for setting in dropped:
                targets[setting.target].forget(setting)
            alive = [setting for setting in alive if setting not in dropped]
    for setting in alive:
        targets[setting.target].forget(setting)


def _groups(
    level: Level,
    prompts: Sequence[int],
    targets: Mapping[str, Target],
    record: Record,
    repeats: int,
) -> list[list[int]]:
    """The prompts in groups; how large they are is recorded. Warms all settings up."""
    levels = list(record.of_kind("level"))
    known = next((row for row in levels if row["concurrency"] == level.concurrency), None)
    if known is None:
        known = _planned(level, prompts[0], targets, levels, repeats)
        record.append([known])
    else:  # the process is new
        targets[level.baseline.target].warm_up(level.baseline, prompts[0])
    level.warm_up = known["warm_up_seconds"]
    size = known["group_size"]
    return [list(prompts[at : at + size]) for at in range(0, len(prompts), size)]


def _planned(
    level: Level,
    prompt: int,
    targets: Mapping[str, Target],
    levels: Sequence[Mapping[str, Any]],
    repeats: int,
) -> dict[str, Any]:
    """Warm up each way that is new; decide how large groups are."""
    times: dict[str, float] = {}
    for row in levels:
        times |= row["warm_up"]
    began = time.perf_counter()
    for setting in level.settings:
        if setting.way not in times:
            took = targets[setting.target].warm_up(setting, prompt)
            times[setting.way] = round(took, 6)
    spent = round(time.perf_counter() - began, 6)
    size = _GROUP if level.concurrency == 1 else 2 * level.concurrency
    if level.budget is not None:
        # The first rung must hold a group of every setting.
        rung = (level.budget - spent) / _rungs(len(level.settings) - 1)
        cycle = sum(times[setting.way] for setting in level.settings)
        size = max(1, min(size, int(rung / max(cycle, 1e-6))))
    return {
        "kind": "level",
        "concurrency": level.concurrency,
        "group_size": size,
        "repeats": repeats,
        "budget": level.budget,
        "warm_up": times,
        "warm_up_seconds": spent,
    }


def _rungs(contenders: int) -> int:
    """Rungs after which halving has left the finalists."""
    return 1 + max(0, math.ceil(math.log2(max(1, contenders) / _FINALISTS)))


def _expected(tally: Tally) -> float:
    return sum(tally.wall) / len(tally.wall) if tally.wall else 0.0


def _cycle(
    level: Level,
    alive: Sequence[Setting],
    place: tuple[int, int],
    turn: int,
    targets: Mapping[str, Target],
    record: Record,
) -> None:
    """Let every setting that is left answer one group; another one begins each time."""
    round_, group = place
    first = turn % len(alive)
    for setting in (*alive[first:], *alive[:first]):  # the baseline is the very first
        target = targets[setting.target]
        # Even one group of each setting may be too much.
        over = level.budget is not None and level.spent > level.budget
        if target.gone or (over and setting != level.baseline and turn == 0):
            continue
        answers = record.group(setting, round_, group)
        if answers is None:
            began = time.perf_counter()
            longest = _longest(level, setting) if turn == 0 else math.inf
            answers = target.measure(setting, level.groups[group], round_, longest)
            wall = round(time.perf_counter() - began, 6)
            if target.gone:  # the group is measured again when the run goes on
                row = {"kind": "gone", "target": setting.target, "load": level.concurrency}
                record.append([{**row, "error": target.gone}])
                continue
            if answers is None:
                record.append([{"kind": "slow", "setting": setting.key, "seconds": wall}])
                level.given_up[setting.key] = wall
                target.forget(setting)
                continue
            record.add_group(setting, round_, group, answers, wall)
        else:
            wall = record.seconds(setting, round_, group)
        level.tallies[setting].add(group, answers, wall)


def _longest(level: Level, setting: Setting) -> float:
    """Seconds after which a setting is given up in its first group.

    Only one that makes `ar`'s text: another text may be longer.
    """
    if level.budget is None or not setting.lossless:
        return math.inf
    known = [tally.wall[0] for s, tally in level.tallies.items() if s.lossless and tally.wall]
    return HOPELESS * min(known, default=math.inf)


def _progress(
    level: Level, alive: Sequence[Setting], done: int, cycles: int
) -> tuple[float, float | None]:
    """The share that is done, and the seconds left."""
    each = sum(_expected(level.tallies[setting]) for setting in alive)
    left = (cycles - done) * each
    if level.budget is not None:
        left = min(left, max(0.0, level.budget - level.spent))
    return level.spent / max(level.spent + left, 1e-9), left


def _dropped(level: Level, alive: Sequence[Setting], rung: int, record: Record) -> list[Setting]:
    """The settings that are measured no more, and why; as recorded if the run goes on."""
    for row in record.of_kind("rung"):
        if (row["concurrency"], row["rung"]) == (level.concurrency, rung):
            return [setting for setting in alive if setting.key in row["dropped"]]
    base = level.tallies[level.baseline]
    found = {s: level.tallies[s].over(base) for s in alive if s != level.baseline}
    known = {setting: interval for setting, interval in found.items() if interval is not None}
    # Only among settings of one text: a fast answer of another text must not drop a better one.
    of_kind = {setting: interval for setting, interval in known.items() if setting.lossless}
    ranked = sorted(of_kind, key=lambda s: of_kind[s].estimate, reverse=True)
    keep = max(_FINALISTS, math.ceil(len(ranked) / 2))
    best = of_kind[ranked[0]].estimate if ranked else 0.0
    dropped = [s for s in ranked[keep:] if _is_slower(of_kind[s], best)]
    why = {s.key: round(known[s].estimate, 4) for s in dropped}
    record.append(
        [{"kind": "rung", "concurrency": level.concurrency, "rung": rung, "dropped": why}]
    )
    return dropped


def _is_slower(found: Interval, best: float) -> bool:
    if found.high is None:
        return found.estimate < _CLEARLY_SLOWER * best
    return found.high < best
