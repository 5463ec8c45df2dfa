"""Whether the setting that `trimode bench` recommends is the best one.

    python benchmarks/quality/recommendation.py --data data [--only code json ...] [--budget 90s]
        [--rows 20] [--repeats 2]

Five kinds of work: code whose answer repeats its prompt, users' instructions, long prompts with
short answers, JSON by a schema, and questions at sixteen requests at a time. Of each, `trimode
bench` gets a short budget and says what to use. Then all settings are measured without a budget.
The table says what the recommended setting makes of the best one's tokens a second (aim: 0.97).
Each kind is saved when it is done; with `--only` the others' results are kept.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.data import data_file
from benchmarks.lib.machine import header, results, save
from benchmarks.lib.prompts import texts

AIM = 0.97
_PASSAGE = 2400
"""Characters of a long prompt's passage."""
_CARD = {
    "type": "object",
    "properties": {
        "topic": {"type": "string", "maxLength": 60},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    },
    "required": ["topic", "words"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Work:
    """A kind of work: its rows, and how it is asked."""

    rows: Callable[[Path, int], list[dict[str, Any]]]
    options: tuple[str, ...] = ()
    concurrency: int = 1
    settings: tuple[str, ...] = field(
        default=("--modes", "ar,linear,quadratic,auto", "--block-lengths", "2,3,4,6,8")
    )


def _code(data: Path, count: int) -> list[dict[str, Any]]:
    ask = "Repeat this code exactly, then explain it in one sentence.\n\n```python\n{}\n```"
    return [{"prompt": ask.format(text.strip())} for text in texts(data, "humaneval")[:count]]


def _instructions(data: Path, count: int) -> list[dict[str, Any]]:
    return [{"prompt": text} for text in texts(data, "instructions")[:count]]


def _passages(data: Path, count: int) -> list[dict[str, Any]]:
    text = data_file(data, "wikitext2/test.txt").read_text(encoding="utf-8")
    starts = range(0, _PASSAGE * count, _PASSAGE)
    ask = "{}\n\nName the subject of this text in a few words."
    return [{"prompt": ask.format(text[start : start + _PASSAGE].strip())} for start in starts]


def _cards(data: Path, count: int) -> list[dict[str, Any]]:
    form = {"type": "json_schema", "json_schema": {"name": "card", "schema": _CARD}}
    found = texts(data, "instructions")[-count:]
    return [{"prompt": f"A card about: {text}", "response_format": form} for text in found]


def _questions(data: Path, count: int) -> list[dict[str, Any]]:
    return [{"prompt": text} for text in texts(data, "gsm8k")[: 2 * count]]


KINDS = {
    "code": Work(_code, ("--max-tokens", "128")),
    "instructions": Work(_instructions, ("--max-tokens", "128")),
    "passages": Work(_passages, ("--max-tokens", "16")),
    "json": Work(_cards, ("--max-tokens", "96")),
    "sixteen": Work(_questions, ("--max-tokens", "96"), concurrency=16),
}


def bench(work: Work, rows: Path, output: Path, *effort: str) -> dict[str, Any]:
    """The summary of a run of `trimode bench`."""
    program = Path(sys.executable).with_name("trimode")
    command = [str(program), "bench", str(rows), "--concurrency", str(work.concurrency)]
    command += [*work.options, *work.settings, *effort, "--output", str(output), "--no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / "summary.json").read_text(encoding="utf-8"))


def judged(short: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """What a short run recommends, beside the best of a whole one."""
    advice = short["recommendation"]
    chosen = (advice["mode"], advice["block_length"]) if advice["gain"] else ("ar", None)
    rates = {
        (row["mode"], row["block_length"]): row["tokens_per_second"]["estimate"]
        for row in whole["settings"]
        if row["lossless"] and "tokens_per_second" in row
    }
    best = max(rates, key=lambda setting: rates[setting])
    return {
        "recommended": _name(chosen),
        "best": _name(best),
        "ratio": round(rates[chosen] / rates[best], 3),
        "gain": advice["gain"],
        "tokens_per_second": {_name(setting): round(rate, 1) for setting, rate in rates.items()},
        "sentence": advice["sentences"][0],
    }


def _name(setting: tuple[str, int | None]) -> str:
    mode, length = setting
    return f"{mode} {length}" if length else mode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--budget", default="90s", help="of the run that recommends")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=2, help="of the run that measures all")
    arguments = parser.parse_args()
    console, path = Console(), results() / "recommendation.json"
    saved = json.loads(path.read_text()) if path.exists() else {"kinds": {}}
    found = {kind: row for kind, row in saved["kinds"].items() if kind not in arguments.only}
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.only:
            work, rows = KINDS[kind], Path(folder) / f"{kind}.jsonl"
            lines = [json.dumps(row) for row in work.rows(arguments.data, arguments.rows)]
            rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
            short = bench(work, rows, Path(folder) / kind, "--budget", arguments.budget)
            effort = ("--budget", "none", "--repeats", str(arguments.repeats))
            whole = bench(work, rows, Path(folder) / f"{kind}-all", *effort)
            found[kind] = {"command": header()["command"], **judged(short, whole)}
            in_order = {kind: found[kind] for kind in KINDS if kind in found}
            save("recommendation", {**header(), "kinds": in_order})
            console.print(kind, found[kind], highlight=False)
    table = Table(title="what trimode bench recommends, beside the best of all settings")
    for column in ("work", "recommended", "best", "ratio", f"at least {AIM}"):
        table.add_column(column)
    for kind, row in found.items():
        verdict = "yes" if row["ratio"] >= AIM else "no"
        table.add_row(kind, row["recommended"], row["best"], f"{row['ratio']:.3f}", verdict)
    console.print(table)


if __name__ == "__main__":
    main()
