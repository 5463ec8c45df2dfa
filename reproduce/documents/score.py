"""Scores a document reader on pages that it has never seen, in every mode.

    python -m reproduce.documents.score --data data --model run/checkpoint --output scores.json
        [--pages 500] [--only fields] [--modes ar diffusion linear quadratic]
        [--thresholds 0.2 0.3] [--spare-drafts 0 2] [--revision-thresholds 0.05]
        [--form fixed]

Every text is held out. Pages are drawn in the fonts of training, and a fifth as many in three
fonts that are not. Each page is transcribed, and asked for one field if it has any.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.forms import FORMS
from reproduce.documents.fonts import HELD_OUT, TRAINED
from reproduce.documents.kinds import KINDS, TRANSCRIBE, draw
from reproduce.documents.pages import Page
from reproduce.documents.texts import open_texts
from trimode import load
from trimode.checkpoints import LoadedModel
from trimode.engine import GenerationResult, generate_batch

MODES = ("ar", "diffusion", "linear", "quadratic")
_LONGEST = 600
"""Most tokens of an answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a page."""

    page: Page
    text: str
    answer: str

    @property
    def prompt(self) -> list[dict[str, Any]]:
        """As messages."""
        parts = [{"type": "image", "image": self.page.image}, {"type": "text", "text": self.text}]
        return [{"role": "user", "content": parts}]


def pages(data: Path, count: int, faces: tuple[str, ...], seed: int) -> list[Page]:
    """Held-out pages of all kinds in turn."""
    texts = open_texts(data, seed, held_out=True)
    names = list(KINDS)
    return [draw(texts, names[i % len(names)], faces) for i in range(count)]


def character_errors(found: str, wanted: str) -> int:
    """Least number of characters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(wanted) + 1))
    for i, a in enumerate(found, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(wanted, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def score(
    model: LoadedModel, questions: Sequence[Question], mode: str, concurrency: int, **options: Any
) -> dict[str, Any]:
    """Errors of a mode, its work on transcriptions, and its answers."""
    prompts = [question.prompt for question in questions]
    results = generate_batch(
        model, prompts, concurrency=concurrency, mode=mode, max_tokens=_LONGEST, **options
    )
    pairs = list(zip(questions, results, strict=True))
    copied = [(q, r) for q, r in pairs if q.text == TRANSCRIBE]
    copies = [r for _, r in copied]
    fields = [(q, r) for q, r in pairs if q.text != TRANSCRIBE]
    return {
        "mode": mode,
        **options,
        "character_error_rate": _error_rate(copied),
        "by_kind": {kind: _error_rate([(q, r) for q, r in copied if q.page.kind == kind])
                    for kind in KINDS},
        "fields_exact": _share([r.text.strip() == q.answer for q, r in fields]),
        "tokens_per_forward": _ratio(copies, "completion_tokens", "nfe"),
        "acceptance_length": _ratio(copies, "cycle_tokens", "cycles"),
        "characters_per_token": round(
            sum(len(r.text) for r in results) / sum(r.stats.completion_tokens for r in results), 3
        ),
        "answers": [r.text for r in results],
    }  # fmt: skip


def _error_rate(pairs: Sequence[tuple[Question, GenerationResult]]) -> float | None:
    """Wrong characters per character, of all pages together."""
    if not pairs:
        return None
    wrong = sum(character_errors(r.text.strip(), q.answer) for q, r in pairs)
    return round(wrong / sum(len(q.answer) for q, _ in pairs), 4)


def _share(right: Sequence[bool]) -> float | None:
    return round(sum(right) / len(right), 4) if right else None


def _ratio(results: Sequence[GenerationResult], above: str, below: str) -> float | None:
    total = sum(getattr(r.stats, below) for r in results)
    return round(sum(getattr(r.stats, above) for r in results) / total, 3) if total else None


def questions_of(drawn: Sequence[Page]) -> list[Question]:
    """To transcribe each page, and to give one field of each that has some."""
    found = []
    for number, page in enumerate(drawn):
        found.append(Question(page, TRANSCRIBE, page.text))
        fields = [item for item in page.questions if not item[1].startswith("{")]
        if fields:
            found.append(Question(page, *fields[number % len(fields)]))
    return found


def asked(questions: list[Question], only: str | None) -> list[Question]:
    """The questions of one kind, or all."""
    if only is None:
        return questions
    return [q for q in questions if (q.text == TRANSCRIBE) == (only == "transcribe")]


def settings(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each mode with its options, in turn."""
    for mode in arguments.modes:
        if mode == "linear":
            yield mode, {"block_length": arguments.block_length}
        elif mode == "diffusion":
            turns = {
                "threshold": arguments.thresholds,
                "spare_drafts": arguments.spare_drafts,
                "revision_threshold": arguments.revision_thresholds,
                "max_denoising_steps": arguments.denoising_steps,
            }
            for values in product(*turns.values()):
                given = dict(zip(turns, values, strict=True)) | FORMS.get(arguments.form, {})
                yield mode, {name: value for name, value in given.items() if value is not None}
        else:
            yield mode, {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument("--only", choices=("transcribe", "fields"), help="questions of one kind")
    parser.add_argument("--modes", nargs="+", default=list(MODES))
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--block-length", type=int, default=16, help="of linear")
    in_turn: dict[str, Any] = {"nargs": "+", "default": [None], "help": "of diffusion, in turn"}
    parser.add_argument("--thresholds", type=float, **in_turn)
    parser.add_argument("--spare-drafts", type=int, **in_turn)
    parser.add_argument("--revision-thresholds", type=float, **in_turn)
    parser.add_argument("--form", choices=FORMS, help="of diffusion; the model's own if not given")
    parser.add_argument("--denoising-steps", type=int, **in_turn)
    parser.add_argument("--concurrency", type=int, default=8)
    arguments = parser.parse_args()
    model = load(arguments.model, dtype=arguments.dtype)
    sets = {
        "fonts of training": pages(arguments.data, arguments.pages, TRAINED, 1),
        "fonts held out": pages(arguments.data, max(1, arguments.pages // 5), HELD_OUT, 2),
    }
    console, found = Console(), {}
    table = Table(title=f"{arguments.pages} held-out pages, {arguments.dtype}")
    for name in ("fonts", "mode", "character errors", "fields exact", "TPF", "acceptance", "as ar"):
        table.add_column(name)
    for name, drawn in sets.items():
        questions, rows = asked(questions_of(drawn), arguments.only), []
        first: list[str] = []
        for mode, options in settings(arguments):
            row = score(model, questions, mode, arguments.concurrency, **options)
            answers = row.pop("answers")
            first = first or answers
            row["equal_to_first_mode"] = _share(
                [a == b for a, b in zip(answers, first, strict=True)]
            )
            rows.append(row)
            table.add_row(
                name,
                " ".join(map(str, (mode, *options.values()))),
                _percent(row["character_error_rate"]),
                _percent(row["fields_exact"]),
                str(row["tokens_per_forward"] or ""),
                str(row["acceptance_length"] or ""),
                _percent(row["equal_to_first_mode"]),
            )
            console.print(
                name, mode, {k: v for k, v in row.items() if k != "mode"}, highlight=False
            )
        found[name] = rows
    console.print(table)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


if __name__ == "__main__":
    main()
