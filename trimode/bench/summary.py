"""Figures of a run, all of them computed from the rows of results.jsonl."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

from trimode.bench.answers import Answer
from trimode.bench.quality import agreement, form_problem, same
from trimode.bench.settings import Setting, baseline_of
from trimode.bench.statistics import (
    LEAST_GROUPS,
    Interval,
    Pair,
    mean,
    ratio_of_sums,
    speedup,
)
from trimode.evaluation.text_quality import loop_at_end
from trimode.workload import schema_of


@dataclass
class Measured:
    """All answers of a setting."""

    setting: Setting
    answers: list[tuple[int, int, Answer]] = field(default_factory=list)
    """Round, group and answer."""
    likelihoods: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Negative log-likelihood of the answer to a prompt under AR, and its tokens."""
    scores: dict[int, float] = field(default_factory=dict)

    @cached_property
    def good(self) -> list[tuple[int, int, Answer]]:
        """Those without an error."""
        return [row for row in self.answers if row[2].error is None]

    @cached_property
    def first(self) -> dict[int, Answer]:
        """The first good answer to each prompt."""
        found: dict[int, Answer] = {}
        for _, _, answer in self.good:
            found.setdefault(answer.prompt, answer)
        return found

    def sums(self, by: str) -> dict[int, tuple[float, float]]:
        """Tokens and seconds by `prompt` or by `group`, over all rounds."""
        found: dict[int, tuple[float, float]] = {}
        for _, group, answer in self.good:
            key = answer.prompt if by == "prompt" else group
            tokens, seconds = found.get(key, (0.0, 0.0))
            found[key] = tokens + (answer.tokens or 0), seconds + answer.share
        return found

    def answered(self) -> set[tuple[int, int]]:
        """Round and prompt of each good answer."""
        return {(round_, answer.prompt) for round_, _, answer in self.good}


class Results:
    """The rows of a run, sorted out."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """`rows`: of results.jsonl."""
        self.header = rows[0]
        self.finished = any(row["kind"] == "end" for row in rows)
        self.gone = {row["target"]: row["error"] for row in rows if row["kind"] == "gone"}
        """Servers that stopped answering, and why."""
        self.settings = [Setting.from_json(row) for row in self.header["settings"]]
        self.prompts = {row["prompt"]: row for row in rows if row["kind"] == "prompt"}
        self.dropped: set[str] = set()
        """Keys of settings that were measured no more."""
        self.hopeless = {row["setting"] for row in rows if row["kind"] == "slow"}
        """Keys of settings that were given up in their first group."""
        self.measured = {setting.key: Measured(setting) for setting in self.settings}
        for row in rows:
            match row["kind"]:
                case "answer":
                    answer = Answer.from_json(dict(row))
                    place = row["round"], row["group"], answer
                    self.measured[row["setting"]].answers.append(place)
                case "rung":
                    self.dropped |= row["dropped"].keys()
                case "likelihood":
                    found = self.measured[row["setting"]].likelihoods
                    found[row["prompt"]] = row["nll"], row["tokens"]
                case "score":
                    self.measured[row["setting"]].scores[row["prompt"]] = row["value"]

    @property
    def loads(self) -> list[int]:
        """Every load, rising."""
        return sorted({setting.concurrency for setting in self.settings})

    def at(self, load: int) -> list[Measured]:
        """The settings of a load, the baseline first."""
        found = [m for m in self.measured.values() if m.setting.concurrency == load]
        base = self.baseline(load)
        return [base, *(m for m in found if m is not base)]

    def baseline(self, load: int) -> Measured:
        """What the settings of a load are compared with."""
        settings = [s for s in self.settings if s.concurrency == load]
        return self.measured[baseline_of(settings).key]


def pairs(base: Measured, other: Measured) -> list[Pair]:
    """What the same prompts took with both; of groups where there are enough.

    Only rounds and prompts that both have answered count.
    """
    common = base.answered() & other.answered()

    def only(measured: Measured) -> Measured:
        kept = [row for row in measured.good if (row[0], row[2].prompt) in common]
        return Measured(measured.setting, kept)

    ours, theirs = only(other), only(base)
    by = "group" if len({group for _, group, _ in ours.good}) >= LEAST_GROUPS else "prompt"
    left, right = theirs.sums(by), ours.sums(by)
    return [Pair(*left[key], *right[key]) for key in sorted(left.keys() & right.keys())]


def summarise(results: Results, *, confidence: float = 0.95) -> dict[str, Any]:
    """summary.json: the figures of every setting."""
    return {
        "finished": results.finished,
        "prompts": len(results.prompts),
        "left_out": [
            {"prompt": number, "line": row["line"], "reason": row["skipped"]}
            for number, row in results.prompts.items()
            if row.get("skipped")
        ],
        "confidence": confidence,
        "settings": [
            _of_setting(results, measured, results.baseline(load), confidence)
            for load in results.loads
            for measured in results.at(load)
        ],
    }


def _of_setting(
    results: Results, measured: Measured, base: Measured, confidence: float
) -> dict[str, Any]:
    setting = measured.setting
    sums = measured.sums("prompt")
    good = [answer for _, _, answer in measured.good]
    found: dict[str, Any] = {
        **setting.to_json(),
        "way": setting.way,
        "short": setting.short,
        "lossless": setting.lossless,
        "baseline": measured is base,
        "answers": len(measured.answers),
        "prompts": len(measured.first),
        "rounds": 1 + max((round_ for round_, _, _ in measured.answers), default=-1),
        "errors": dict(Counter(a.error for _, _, a in measured.answers if a.error).most_common()),
        "dropped": setting.key in results.dropped,
    }
    if not good:
        return found
    tokens, seconds = zip(*sums.values(), strict=True)
    found |= {
        "tokens_per_second": asdict(ratio_of_sums(tokens, seconds, confidence=confidence)),
        "counted": "by chunks" if any(a.counted != "exactly" for a in good) else "exactly",
        **_timing(good),
        **_accounting(good),
        **_quality(measured, base, confidence),
        **_validity(
            measured, {n: row["form"] for n, row in results.prompts.items() if "form" in row}
        ),
    }
    paired = pairs(base, measured)
    if measured is not base and paired:
        found["speedup"] = asdict(speedup(paired, confidence=confidence))
    return found


def _timing(good: Sequence[Answer]) -> dict[str, Any]:
    times_to_first = [a.ttft for a in good if a.ttft is not None]
    per_token = [a.tpot for a in good if a.tpot is not None]
    whole = [a.finished - a.sent for a in good]
    return {
        "ttft_median": median(times_to_first) if times_to_first else None,
        "tpot_median": median(per_token) if per_token else None,
        "seconds_median": median(whole),
        "chunks": sum(len(a.chunks) for a in good),
        "tokens": sum(a.tokens or 0 for a in good),
        "seconds": sum(a.share for a in good),
        "seconds_to_first": _share_before_first(good),
    }


def _share_before_first(good: Sequence[Answer]) -> float:
    """Seconds of the machine until first texts: each request's share, by its own time."""
    found = 0.0
    for answer in good:
        whole = answer.finished - answer.sent
        if answer.ttft is not None and whole > 0:
            found += answer.share * min(1.0, answer.ttft / whole)
    return found


def _accounting(good: Sequence[Answer]) -> dict[str, Any]:
    counted = [a for a in good if a.nfe]
    nfe = sum(a.nfe or 0 for a in counted)
    cycles = sum(a.cycles for a in good)
    return {
        "nfe": nfe or None,
        "tokens_per_forward": sum(a.tokens or 0 for a in counted) / nfe if nfe else None,
        "acceptance_length": sum(a.cycle_tokens for a in good) / cycles if cycles else None,
        "seconds_per_pass": sum(a.share for a in counted) / nfe if nfe else None,
        "passes": _total(a.passes for a in good),
        "plans": _total(a.plans for a in good),
        "finish_reasons": dict(Counter(str(a.finish_reason) for a in good).most_common()),
    }


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _quality(measured: Measured, base: Measured, confidence: float) -> dict[str, Any]:
    """What the answers are worth; of each prompt the first answer counts."""
    first = measured.first
    both = sorted(first.keys() & base.first.keys())
    count = max(1, len(first))
    found: dict[str, Any] = {
        "looping": sum(loop_at_end(a.text) is not None for a in first.values()) / count,
        "truncated": sum(a.finish_reason == "length" for a in first.values()) / count,
        "empty": sum(not a.text.strip() for a in first.values()) / count,
    }
    if both:
        found["equal"] = sum(same(first[i], base.first[i]) for i in both) / len(both)
        found["agreement"] = sum(agreement(first[i], base.first[i]) for i in both) / len(both)
    perplexity = _perplexity_ratio(measured, base, both, confidence)
    if perplexity is not None:
        found["perplexity_ratio"] = asdict(perplexity)
    if measured.scores:
        found["score"] = asdict(mean(list(measured.scores.values()), confidence=confidence))
        scored = sorted(measured.scores.keys() & base.scores.keys())
        lost = [base.scores[i] - measured.scores[i] for i in scored]
        if lost and measured is not base:
            found["score_loss"] = asdict(mean(lost, confidence=confidence))
    return found


def _validity(measured: Measured, forms: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the answers that were to be JSON, the share that is, by the schema if one was given."""
    formed = sorted(measured.first.keys() & forms.keys())
    valid = sum(
        form_problem(measured.first[number].text, schema_of(forms[number])) is None
        for number in formed
    )
    return {"valid_json": valid / len(formed)} if formed else {}


def _perplexity_ratio(
    measured: Measured, base: Measured, both: Sequence[int], confidence: float
) -> Interval | None:
    """AR's perplexity of the answers over that of the baseline's answers.

    An answer that is equal to the baseline's needs no likelihood.
    """
    differences: list[float] = []
    for i in both:
        if same(measured.first[i], base.first[i]):
            differences.append(0.0)
        elif i in measured.likelihoods and i in base.likelihoods:
            (ours, tokens), (theirs, others) = measured.likelihoods[i], base.likelihoods[i]
            differences.append(ours / max(1, tokens) - theirs / max(1, others))
    if measured is base or len(differences) < len(both) or not both:
        return None
    return mean(differences, confidence=confidence).exp()
