"""What changed between two results, and whether it is more than noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from trimode.bench.quality import same
from trimode.bench.statistics import Interval, Pair, speedup
from trimode.bench.summary import Measured, Results
from trimode.errors import InputError

_WATCHED = ("cpu", "cores", "threads", "trimode", "torch", "python")


def compare_results(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compare the settings that two results share, on the prompts that they share.

    Two runs are never at the same time, so the machine may have been faster in one of them. The
    baseline shows that; of every other setting, its gain over the baseline is compared too.

    Raises:
        InputError: they have no setting or no prompt in common.
    """
    old, new = Results(before), Results(after)
    keys = [key for key in old.measured if key in new.measured]
    if not keys:
        found = "no setting in common"
        raise InputError("compare", found, "must be runs with the same modes and loads")
    numbers = _same_prompts(old, new)
    if not numbers:
        raise InputError("compare", "no prompt in common", "must be runs of the same workload")
    rows = [_row(old, new, key, numbers) for key in keys]
    rows = [row for row in rows if row is not None]
    facts = _facts(old, new)
    return {"prompts": len(numbers), "facts": facts, "settings": rows,
            "lines": [*facts, *(_line(row) for row in rows)]}  # fmt: skip


def _same_prompts(old: Results, new: Results) -> dict[int, int]:
    """Number in the old results to number in the new ones."""
    places = {repr(row["asked"]): number for number, row in new.prompts.items()}
    return {
        number: places[repr(row["asked"])]
        for number, row in old.prompts.items()
        if repr(row["asked"]) in places
    }


def _facts(old: Results, new: Results) -> list[str]:
    """What differs between the two machines and models."""
    found = []
    before, after = old.header["machine"], new.header["machine"]
    found += [
        f"{name}: was {before.get(name)}, is {after.get(name)}"
        for name in _WATCHED
        if before.get(name) != after.get(name)
    ]
    if old.header["model"] != new.header["model"]:
        found.append(f"model: was {old.header['model']}, is {new.header['model']}")
    options = ("max_tokens", "temperature", "top_p", "system", "raw")
    made, makes = old.header["made_with"], new.header["made_with"]
    found += [
        f"{name}: was {made.get(name)}, is {makes.get(name)}"
        for name in options
        if made.get(name) != makes.get(name)
    ]
    return found


def _row(old: Results, new: Results, key: str, numbers: Mapping[int, int]) -> dict[str, Any] | None:
    left, right = old.measured[key], new.measured[key]
    both = [(a, b) for a, b in numbers.items() if a in left.first and b in right.first]
    if not both:
        return None
    found = speedup(_pairs(left, right, both))
    row: dict[str, Any] = {
        "key": key,
        "prompts": len(both),
        "speed": _json(found),
        "changed_answers": sum(not same(left.first[a], right.first[b]) for a, b in both),
    }
    load = left.setting.concurrency
    bases = old.baseline(load), new.baseline(load)
    if bases[0].setting.key == bases[1].setting.key != key:
        common = [(a, b) for a, b in both if a in bases[0].first and b in bases[1].first]
        if common:
            row["beside_baseline"] = _json(_relative(left, right, bases, common))
            row["baseline"] = bases[0].setting.key
    return row


def _pairs(left: Measured, right: Measured, both: Sequence[tuple[int, int]]) -> list[Pair]:
    """Prompt by prompt; a mean over the rounds, since runs may have had different ones."""
    before, after = left.sums("prompt"), right.sums("prompt")
    times = [_rounds(measured) for measured in (left, right)]
    return [
        Pair(
            before[a][0] / times[0][a],
            before[a][1] / times[0][a],
            after[b][0] / times[1][b],
            after[b][1] / times[1][b],
        )
        for a, b in both
    ]


def _rounds(measured: Measured) -> dict[int, int]:
    found: dict[int, int] = {}
    for _, _, answer in measured.good:
        found[answer.prompt] = found.get(answer.prompt, 0) + 1
    return found


def _relative(
    left: Measured,
    right: Measured,
    bases: tuple[Measured, Measured],
    both: Sequence[tuple[int, int]],
) -> Interval:
    """The gain over the baseline after, over the gain before: seconds a token of four runs."""
    own = _pairs(left, right, both)
    base = _pairs(*bases, both)
    scaled = [
        Pair(
            p.base_tokens,
            p.base_seconds,
            p.tokens,
            # What the prompt would have taken on the machine as it was before.
            p.seconds * (b.base_seconds / b.base_tokens) / (b.seconds / b.tokens),
        )
        for p, b in zip(own, base, strict=True)
        if min(b.base_tokens, b.tokens, b.base_seconds, b.seconds) > 0
    ]
    return speedup(scaled)


def _json(found: Interval) -> dict[str, Any]:
    return {
        "estimate": found.estimate,
        "low": found.low,
        "high": found.high,
        "units": found.units,
        "more_than_noise": found.low is not None
        and found.high is not None
        and not found.low <= 1 <= found.high,
    }


def _line(row: Mapping[str, Any]) -> str:
    """One setting in a sentence."""
    said = f"{row['key']}: {_words(row['speed'])} on {_count(row['prompts'], 'prompt')}"
    if "beside_baseline" in row:
        said += f"; beside {row['baseline']} {_words(row['beside_baseline'])}"
    if row["changed_answers"]:
        said += f"; {_count(row['changed_answers'], 'answer')} changed"
    return said


def _words(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['estimate']:.3f} times as fast (too few prompts to tell)"
    noise = "more than noise" if found["more_than_noise"] else "may be noise"
    bounds = f"{found['low']:.3f} to {found['high']:.3f}"
    return f"{found['estimate']:.3f} times as fast ({bounds}, {noise})"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
