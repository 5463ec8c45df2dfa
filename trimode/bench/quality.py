"""What an answer is worth, beside `ar`'s to the same prompt."""

from collections.abc import Sequence
from typing import Any

from trimode.bench.answers import Answer
from trimode.evaluation import text_quality


def same(answer: Answer, reference: Answer) -> bool:
    """Whether two answers are equal: token by token, or as texts if a server hides its tokens."""
    if answer.token_ids is not None and reference.token_ids is not None:
        return answer.token_ids == reference.token_ids
    return answer.text == reference.text


def agreement(answer: Answer, reference: Answer) -> float:
    """Share of the longer answer's places with the same token, or word if tokens are hidden."""
    ours: Sequence[object] = answer.text.split()
    theirs: Sequence[object] = reference.text.split()
    if answer.token_ids is not None and reference.token_ids is not None:
        ours, theirs = answer.token_ids, reference.token_ids
    return text_quality.agreement(ours, theirs).per_token


def form_problem(text: str, schema: dict[str, Any] | None) -> str | None:
    """Why a text, perhaps in a fence, is not the JSON that was asked for; None if it is."""
    stripped = text.strip()
    if stripped.startswith("```"):
        stripped = stripped.split("\n", 1)[-1].rsplit("```", 1)[0]
    return text_quality.schema_problem(stripped, schema or {})
