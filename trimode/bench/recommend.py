"""What to deploy, and how sure that is: statistics, not a maximum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimode.bench.settings import AS_IT_IS, LOCAL
from trimode.bench.statistics import LEAST_UNITS, Interval, speedup
from trimode.bench.summary import Measured, Results, pairs

LEAST_GAIN = 1.01
"""What a setting's rate over the baseline's must exceed at its lower bound."""
_SAME = 0.99
"""Share of the best rate from which `auto` is preferred: it goes on to adapt."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one contender at one load."""

    measured: Measured
    speedup: Interval
    """Its bounds allow for how many settings were compared."""
    loss: float | None
    """Most quality that it may lose; 0 if it promises AR's tokens, None if that is not known."""

    @property
    def gains(self) -> bool:
        """Whether a gain is shown."""
        return self.speedup.low is not None and self.speedup.low > LEAST_GAIN


def recommend(
    results: Results,
    summary: Mapping[str, Any],
    *,
    max_quality_loss: float | None,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """The recommendation of a run.

    Args:
        results: of the run.
        summary: of the same results.
        max_quality_loss: share that a setting may lose; None: only what promises AR's tokens.
        confidence: of all comparisons of a load together.
    """
    figures = {row["key"]: row for row in summary["settings"]}
    verdicts = {
        load: _verdicts(results, figures, load, max_quality_loss, confidence)
        for load in results.loads
    }
    best = {load: _best(found) for load, found in verdicts.items()}
    others = _other_servers(summary)
    choice = next((best[load] for load in results.loads if best[load] is not None), None)
    base = results.baseline(results.loads[0]).setting
    if choice is None:
        return {
            "gain": False,
            "mode": base.mode,
            "way": base.way,
            "sentences": _no_gain(results, verdicts),
            "others": others,
            "loads": {str(load): None for load in results.loads},
        }
    choice = _steadiest(verdicts, choice)
    setting = choice.measured.setting
    holds = _holds(verdicts, setting.way, setting.concurrency)
    return {
        "gain": True,
        "mode": setting.mode,
        "way": setting.way,
        "block_length": setting.block_length,
        "threshold": setting.threshold,
        "target": setting.target,
        "load": setting.concurrency,
        "holds_up_to": holds,
        "sentences": _gain(results, figures, verdicts, choice, holds, confidence),
        "others": others,
        "loads": {
            str(load): None if found is None else found.measured.setting.way
            for load, found in best.items()
        },
    }


def _other_servers(summary: Mapping[str, Any]) -> list[str]:
    """How fast servers are that we cannot configure, in sentences."""
    return [
        f"{row['target']} with {load_in_words(row['concurrency'])} makes "
        f"{row['speedup']['estimate']:.2f} times as many tokens a second as the baseline."
        for row in summary["settings"]
        if row["mode"] == AS_IT_IS and "speedup" in row
    ]


def _verdicts(
    results: Results,
    figures: Mapping[str, Mapping[str, Any]],
    load: int,
    max_loss: float | None,
    confidence: float,
) -> list[Verdict]:
    """All contenders of a load whose quality is within bounds."""
    base = results.baseline(load)
    allowed = []
    for measured in results.at(load):
        loss = _most_loss(figures[measured.setting.key], figures[base.setting.key])
        within = loss is not None and loss <= (max_loss or 0.0)
        if measured is not base and within and measured.setting.mode != AS_IT_IS:
            allowed.append((measured, loss))
    sure = 1 - (1 - confidence) / max(1, len(allowed))
    return [
        Verdict(measured, speedup(found, confidence=sure), loss)
        for measured, loss in allowed
        if (found := pairs(base, measured))
    ]


def _most_loss(row: Mapping[str, Any], base: Mapping[str, Any]) -> float | None:
    """The most quality that a setting may lose, at the bound of its interval.

    The loss of scores, if there are any; else the rise of AR's perplexity, or of the share of
    answers that end in a loop, whichever is more.
    """
    if row["lossless"]:
        return 0.0
    if "score_loss" in row:
        return row["score_loss"]["high"]
    if "perplexity_ratio" not in row or row["perplexity_ratio"]["high"] is None:
        return None
    return max(row["perplexity_ratio"]["high"] - 1, row["looping"] - base["looping"])


def _best(verdicts: Sequence[Verdict]) -> Verdict | None:
    """The fastest that shows a gain; `auto` if it is as good as that."""
    gains = sorted((v for v in verdicts if v.gains), key=lambda v: -v.speedup.estimate)
    if not gains:
        return None
    bar = _SAME * gains[0].speedup.estimate
    near = [v for v in gains if v.speedup.estimate >= bar and v.measured.setting.mode == "auto"]
    return near[0] if near else gains[0]


def _steadiest(verdicts: Mapping[int, Sequence[Verdict]], choice: Verdict) -> Verdict:
    """Among settings as good as the choice at its load, the one that is best over all loads."""
    rates = {
        (v.measured.setting.way, load): v.speedup.estimate
        for load, found in verdicts.items()
        for v in found
    }

    def over_all(verdict: Verdict) -> float:
        product = 1.0
        for load in verdicts:
            product *= rates.get((verdict.measured.setting.way, load), 0.0)
        return product

    bar = 0.98 * choice.speedup.estimate
    load = choice.measured.setting.concurrency
    near = [v for v in verdicts[load] if v.gains and v.speedup.estimate >= bar]
    better = max(near, key=over_all)
    return better if over_all(better) > over_all(choice) else choice


def _holds(verdicts: Mapping[int, Sequence[Verdict]], way: str, first: int) -> int:
    """The largest load up to which a setting shows a gain at every load from `first` on."""
    holds = first
    for load in sorted(load for load in verdicts if load >= first):
        if not any(v.gains and v.measured.setting.way == way for v in verdicts[load]):
            break
        holds = load
    return holds


def in_words(setting: Any) -> str:
    """A setting as a sentence names it."""
    place = "" if setting.target == LOCAL else f" at {setting.target}"
    extras = []
    if setting.block_length is not None:
        extras.append(f"block length {setting.block_length}")
    if setting.threshold is not None:
        extras.append(f"threshold {setting.threshold:g}")
    return setting.mode + (f" with {' and '.join(extras)}" if extras else "") + place


def load_in_words(load: int) -> str:
    """A load as a sentence names it."""
    return "one request at a time" if load == 1 else f"{load} requests at a time"


def _interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return "no interval"
    return f"{found.low:.2f} to {found.high:.2f}"


def _gain(
    results: Results,
    figures: Mapping[str, Mapping[str, Any]],
    verdicts: Mapping[int, Sequence[Verdict]],
    choice: Verdict,
    holds: int,
    confidence: float,
) -> list[str]:
    """Two sentences for a gain."""
    setting = choice.measured.setting
    row = figures[setting.key]
    base = results.baseline(setting.concurrency).setting
    text = _text_in_words(row, choice)
    first = (
        f"Use {in_words(setting)}: it makes {choice.speedup.estimate:.2f} times as many tokens "
        f"a second as {in_words(base)} with {load_in_words(setting.concurrency)} "
        f"({confidence:.0%} interval {_interval(choice.speedup)}, {row['prompts']} prompts), "
        f"{text}."
    )
    others = [load for load in results.loads if load > holds]
    if not others:
        if len(results.loads) == 1:
            return [first, "Other loads were not measured."]
        there = next(v for v in verdicts[holds] if v.measured.setting.way == setting.way)
        second = (
            f"It holds up to {load_in_words(holds)}, the most that was measured: "
            f"{there.speedup.estimate:.2f} times there ({_interval(there.speedup)})."
        )
        return [first, second]
    then = _best(verdicts[others[0]])
    instead = (
        f"no setting shows a gain: use {in_words(results.baseline(others[0]).setting)} there"
        if then is None
        else f"{in_words(then.measured.setting)} is the one that shows a gain "
        f"({then.speedup.estimate:.2f} times)"
    )
    return [
        first,
        f"It holds up to {load_in_words(holds)}; with {load_in_words(others[0])} {instead}.",
    ]


def _text_in_words(row: Mapping[str, Any], choice: Verdict) -> str:
    if not row["lossless"]:
        return f"at a loss of quality of at most {max(0.0, choice.loss or 0.0):.1%}"
    equal = row.get("equal", 1.0)
    if equal == 1.0:
        return "and its text is ar's, token for token"
    return f"and {equal:.1%} of its answers are ar's, token for token (near-ties of floats)"


def _no_gain(results: Results, verdicts: Mapping[int, Sequence[Verdict]]) -> list[str]:
    """Two sentences where no gain is shown."""
    base = in_words(results.baseline(results.loads[0]).setting)
    found = [v for several in verdicts.values() for v in several]
    if not found:
        return [
            f"No gain shown: use {base}.",
            "No other setting could be compared within the allowed loss of quality.",
        ]
    best = max(found, key=lambda v: v.speedup.estimate)
    setting = best.measured.setting
    first = f"No gain shown: use {base}."
    if not best.speedup.known:
        one = best.speedup.units == 1
        second = (
            f"{best.speedup.units} prompt{'' if one else 's'} cannot tell a gain from chance (at "
            f"least {LEAST_UNITS} are needed); on {'it' if one else 'them'} {in_words(setting)} "
            f"made {best.speedup.estimate:.2f} times as many tokens a second."
        )
    else:
        second = (
            f"The best of {len(found)} other settings, {in_words(setting)} with "
            f"{load_in_words(setting.concurrency)}, makes {best.speedup.estimate:.2f} times as "
            f"many tokens a second (interval {_interval(best.speedup)}), which is not shown to "
            f"exceed {LEAST_GAIN:g}."
        )
    return [first, second]
