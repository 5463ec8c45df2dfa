"""report.html, summary.json and trimode.yaml, all of them made from the rows of results.jsonl."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trimode.bench import plots
from trimode.bench.deploy import command_line, serve_options, write_config
from trimode.bench.plots import Point
from trimode.bench.quality import agreement, same
from trimode.bench.recommend import recommend
from trimode.bench.search import HOPELESS
from trimode.bench.settings import AS_IT_IS, LOCAL
from trimode.bench.summary import Results, summarise

MOST_DIFFERENT = 10
"""Answers that are shown side by side."""
_MANY_TRUNCATED = 0.1


def write_report(
    directory: Path, rows: Sequence[Mapping[str, Any]], *, max_quality_loss: float | None
) -> dict[str, Any]:
    """Write all that a reader gets; returns what is in summary.json.

    Args:
        directory: of results.jsonl.
        rows: of results.jsonl.
        max_quality_loss: share that a setting may lose to be recommended.
    """
    results = Results(rows)
    summary = summarise(results)
    advice = recommend(results, summary, max_quality_loss=max_quality_loss)
    summary |= {
        "recommendation": advice,
        "deploy": _deploy(directory, results, advice),
        "different": _different(results),
        "unsure": _unsure(results, summary),
        "header": {k: v for k, v in results.header.items() if k not in ("kind", "settings")},
    }
    text = json.dumps(summary, indent=1) + "\n"
    (directory / "summary.json").write_text(text, encoding="utf-8")
    (directory / "report.html").write_text(render(summary), encoding="utf-8")
    return summary


def _deploy(directory: Path, results: Results, advice: Mapping[str, Any]) -> dict[str, Any] | None:
    """Write trimode.yaml; None if what is recommended is not ours to start."""
    if advice["mode"] == AS_IT_IS or LOCAL not in results.header.get("models", {}):
        return None
    options = serve_options(advice, results.header["model"])
    write_config(directory, options, advice["sentences"])
    return {"options": options, "command": command_line(options)}


def _different(results: Results) -> list[dict[str, Any]]:
    """The answers that differ most from the baseline's, each prompt and text once."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for load in results.loads:
        base = results.baseline(load)
        for measured in results.at(load):
            for number, answer in measured.first.items():
                reference = base.first.get(number)
                if measured is base or reference is None or same(answer, reference):
                    continue
                key = number, answer.text
                row = {
                    "prompt": number,
                    "line": results.prompts[number]["line"],
                    "setting": measured.setting.key,
                    "baseline": base.setting.key,
                    "agreement": agreement(answer, reference),
                    "base_text": reference.text,
                    "text": answer.text,
                }
                found.setdefault(key, row)
    return sorted(found.values(), key=lambda row: row["agreement"])[:MOST_DIFFERENT]


def _unsure(results: Results, summary: Mapping[str, Any]) -> list[str]:
    """What the run could not tell, in sentences."""
    rows = summary["settings"]
    asked = len(results.prompts)
    said: list[str] = []
    if summary["left_out"]:
        first = summary["left_out"][0]
        said.append(
            f"{len(summary['left_out'])} of {asked} prompts were left out; the first is line "
            f"{first['line']}: {first['reason']}."
        )
    said += [
        f"{row['key']}: {count} of {row['answers']} requests failed ({reason})."
        for row in rows
        for reason, count in row["errors"].items()
    ]
    said += _cut_short(results, rows, asked - len(summary["left_out"]))
    if results.header.get("busy"):
        said.append(
            "Other programs were busy when passes were timed, by which auto decides: on an idle "
            "machine it may do better."
        )
    cut = [row for row in rows if row["baseline"] and row.get("truncated", 0) > _MANY_TRUNCATED]
    if cut:
        said.append(
            f"{cut[0]['truncated']:.0%} of the answers were cut by the limit of tokens "
            "(--max-tokens); longer answers may have other figures."
        )
    if any(row.get("counted") == "by chunks" for row in rows):
        said.append("A server does not count its tokens: chunks are counted there instead.")
    if not any("score" in row for row in rows):
        said.append("No right answers were judged (--score): quality is likeness to ar's answers.")
    if len(results.loads) == 1:
        said.append("Only one load was measured (--concurrency).")
    if not results.finished:
        said += [
            f"{target} stopped answering ({why}); the same command goes on when it is back."
            for target, why in results.gone.items()
        ]
        if not results.gone:
            said.append("The run was interrupted; the same command goes on.")
    return said


def _cut_short(results: Results, rows: Sequence[Mapping[str, Any]], usable: int) -> list[str]:
    """Which settings were measured less than all of the `usable` prompts, and why."""
    said: list[str] = []
    hopeless = [row["key"] for row in rows if row["key"] in results.hopeless]
    if hopeless:
        said.append(
            f"Given up in the first group, since they took {HOPELESS:g} times as long as the "
            f"fastest setting until then: {', '.join(hopeless)}."
        )
    never = [row["key"] for row in rows if not row["answers"] and row["key"] not in hopeless]
    if never and results.finished:
        said.append(f"The time budget was too short to measure {', '.join(never)} at all.")
    if any(row["dropped"] for row in rows):
        names = ", ".join(row["key"] for row in rows if row["dropped"])
        said.append(
            f"Measured on fewer prompts, since they were slower than the best: {names}. Their "
            "intervals are wider."
        )
    repeats = results.header["made_with"].get("repeats", 1)
    short = [r for r in rows if not r["dropped"] and 0 < r["answers"] < usable * repeats]
    if short:
        least = min(short, key=lambda row: row["answers"])
        said.append(
            f"The time budget ended before every prompt was asked {repeats} times: "
            f"{least['key']} answered {least['answers']} of {usable * repeats} requests, "
            f"{least['prompts']} of {usable} prompts at least once. A longer --budget narrows the "
            "intervals."
        )
    return said


def table_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table of all settings, as text."""
    scored = any("score" in row for row in summary["settings"])
    formed = any("valid_json" in row for row in summary["settings"])
    optional = [name for name, shown in (("score", scored), ("JSON", formed)) if shown]
    header = ["setting", "load", "tok/s", "x base", "interval", "TTFT ms", "ms/token", "TPF",
              "accepted", "equal", *optional, "answers"]  # fmt: skip
    rows = []
    for row in summary["settings"]:
        if "tokens" not in row:
            failed = ["no answer", *[""] * (len(header) - 4)]
            rows.append([row["way"], str(row["concurrency"]), *failed, str(row["answers"])])
            continue
        gain = row.get("speedup") or {}
        score = [_number(row.get("score", {}).get("estimate"), 3)] if scored else []
        valid = [f"{row['valid_json']:.0%}" if "valid_json" in row else ""] if formed else []
        bounds = (gain.get("low"), gain.get("high"))
        rows.append(
            [
                row["way"],
                str(row["concurrency"]),
                f"{row['tokens_per_second']['estimate']:.1f}",
                _number(gain.get("estimate"), 2),
                "" if None in bounds else f"{bounds[0]:.2f} to {bounds[1]:.2f}",
                _milliseconds(row["ttft_median"], 0),
                _milliseconds(row["tpot_median"], 2),
                _number(row["tokens_per_forward"], 2),
                _number(row["acceptance_length"], 2),
                "" if row["baseline"] or "equal" not in row else f"{row['equal']:.0%}",
                *score,
                *valid,
                str(row["answers"]),
            ]
        )
    return header, rows


def narrow_rows(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same for a terminal of 80 columns: what decides."""
    header, rows = table_rows(summary)
    wanted = [i for i, name in enumerate(header) if name not in _WIDE_ONLY]
    return [header[i] for i in wanted], [[row[i] for i in wanted] for row in rows]


_WIDE_ONLY = frozenset(("TTFT ms", "ms/token", "accepted"))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _milliseconds(value: float | None, digits: int) -> str:
    return _number(None if value is None else value * 1e3, digits)


def frontier(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Keys of the settings that no other one beats in both speed and quality."""

    def figures(row: Mapping[str, Any]) -> tuple[float, float]:
        return row["tokens_per_second"]["estimate"], quality_of(row)

    def beaten(row: Mapping[str, Any]) -> bool:
        speed, quality = figures(row)
        others = (figures(other) for other in rows if other is not row)
        return any(s >= speed and q >= quality and (s, q) != (speed, quality) for s, q in others)

    return {row["key"] for row in rows if not beaten(row)}


def quality_of(row: Mapping[str, Any]) -> float:
    """The score of a setting, or else its likeness to the baseline."""
    return row["score"]["estimate"] if "score" in row else row.get("agreement", 1.0)


def render(summary: Mapping[str, Any]) -> str:
    """report.html: one page that needs no network."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("trimode.bench", "."), autoescape=True)
    header, rows = table_rows(summary)
    facts = summary["header"]
    machine = facts["machine"]
    page = environment.get_template("report.html.j2")
    return page.render(
        title=f"Does it pay? {Path(facts['workload']).name}",
        advice=summary["recommendation"],
        deploy=summary["deploy"],
        loads=_plots_by_load(summary),
        by_load=_by_load(summary),
        table_header=header,
        table=rows,
        time_rows=_time_rows(summary),
        different=[_side_by_side(row) for row in summary["different"]],
        unsure=summary["unsure"],
        machine={name: _words(value) for name, value in machine.items()},
        models=facts.get("models", {}),
        command=facts["command"],
        prompts=summary["prompts"],
        confidence=f"{summary['confidence']:.0%}",
    )


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plots_by_load(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each load: speeds with intervals, quality against speed, and where time goes."""
    found = []
    loads = sorted({row["concurrency"] for row in summary["settings"]})
    for load in loads:
        rows = [r for r in summary["settings"] if r["concurrency"] == load and "tokens" in r]
        if not rows:
            continue
        best = frontier(rows)
        ranked = sorted(rows, key=lambda row: -row["tokens_per_second"]["estimate"])
        compared = [row for row in ranked if "speedup" in row]
        speeds = [
            Point(row["short"], _colour(row), row["speedup"]["estimate"], row["speedup"]["low"],
                  row["speedup"]["high"], marked=row["key"] in best)
            for row in compared
        ]  # fmt: skip
        qualities = {quality_of(row) for row in rows}
        dots = [
            Point(row["short"], _colour(row), row["tokens_per_second"]["estimate"],
                  y=quality_of(row), marked=row["key"] in best)
            for row in rows
        ]  # fmt: skip
        times = [
            (row["short"], _colour(row), [part / row["tokens"] * 1e3 for part in _parts(row)])
            for row in ranked
        ]
        scored = any("score" in row for row in rows)
        found.append(
            {
                "load": load,
                "words": "one request at a time" if load == 1 else f"{load} requests at a time",
                "base": next((row["way"] for row in rows if row["baseline"]), "the first"),
                "speeds": plots.intervals(speeds, unit="times base", line_at=1.0),
                "quality": plots.scatter(
                    dots, x_unit="tok/s", y_unit="score" if scored else "agreement with the base"
                )
                if len(qualities) > 1
                else "",
                "same": len(qualities) == 1 and not scored,
                "times": plots.bars(times, unit="ms a token"),
            }
        )
    return found


def _parts(row: Mapping[str, Any]) -> tuple[float, float]:
    first = row["seconds_to_first"]
    return first, row["seconds"] - first


def _colour(row: Mapping[str, Any]) -> str:
    return "other" if row["mode"] == AS_IT_IS else row["mode"]


def _by_load(summary: Mapping[str, Any]) -> str:
    """Tokens a second of each mode's best way, by load."""
    rows = [row for row in summary["settings"] if "tokens" in row]
    loads = {row["concurrency"] for row in rows}
    if len(loads) < 2:
        return ""
    ways: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        ways.setdefault(row["way"], []).append(row)
    best: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for several in ways.values():
        if {row["concurrency"] for row in several} != loads:
            continue
        place = several[0]["target"], several[0]["mode"]
        if place not in best or _sum(several) > _sum(best[place]):
            best[place] = several
    series = [
        (
            several[0]["short"],
            _colour(several[0]),
            [(row["concurrency"], row["tokens_per_second"]["estimate"]) for row in several],
        )
        for several in best.values()
    ]
    return plots.lines(series, y_unit="tok/s of all requests together")


def _sum(rows: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["tokens_per_second"]["estimate"] for row in rows)


def _time_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Passes of each setting: how many, how long, of what kind."""
    found = []
    for row in summary["settings"]:
        if not row.get("nfe"):
            continue
        kinds = row["plans"] or row["passes"]
        total = max(1, sum(kinds.values()))
        shown = ", ".join(f"{kind} {count / total:.0%}" for kind, count in kinds.items())
        found.append(
            [
                row["key"],
                str(row["nfe"]),
                _milliseconds(row["seconds_per_pass"], 2),
                f"{row['seconds_to_first'] / max(row['seconds'], 1e-9):.0%}",
                shown,
            ]
        )
    return found


def _side_by_side(row: Mapping[str, Any]) -> dict[str, Any]:
    """Two answers as HTML, with what differs marked."""
    left, right = marked(row["base_text"], row["text"])
    return {**row, "left": left, "right": right, "agreement": f"{row['agreement']:.0%}"}


def marked(left: str, right: str) -> tuple[str, str]:
    """Two texts as HTML, with the words that differ marked."""
    ours, theirs = (re.findall(r"\s+|\S+", text) for text in (left, right))
    both: tuple[list[str], list[str]] = ([], [])
    matcher = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    for what, a, b, c, d in matcher.get_opcodes():
        for side, words in zip(both, (ours[a:b], theirs[c:d]), strict=True):
            text = escape("".join(words))
            side.append(text if what == "equal" or not text else f"<mark>{text}</mark>")
    return "".join(both[0]), "".join(both[1])
