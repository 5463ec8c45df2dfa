"""What an answer is worth, beside `ar`'s to the same prompt."""

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from trimode.bench.answers import Answer
from trimode.errors import InputError

_LEAST_LOOP = 60
"""Characters of the shortest end of an answer that counts as a loop, if it is one."""
_LEAST_TURNS = 3
_SCORING = "trimode.evaluation.scoring"


class Score(Protocol):
    """What a scorer returns."""

    @property
    def value(self) -> float:
        """From 0, wrong, to 1, right."""
        ...

    @property
    def detail(self) -> str:
        """Why."""
        ...


class Scorer(Protocol):
    """Judges an answer by its reference."""

    def __call__(self, answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
        """The score of one answer."""
        ...


def find_scorer(name: str, *, sandbox: bool) -> Scorer:
    """The scorer of this name.

    Raises:
        InputError: there is none, or it cannot run here.
    """
    try:
        scoring = importlib.import_module(_SCORING)
    except ModuleNotFoundError as error:
        if error.name not in (_SCORING, "trimode.evaluation"):
            raise
        raise InputError("score", repr(name), "this build has no scorers") from None
    return scoring.scorer(name, sandbox=sandbox)


def same(answer: Answer, reference: Answer) -> bool:
    """Whether two answers are equal: token by token, or as texts if a server hides its tokens."""
    if answer.token_ids is not None and reference.token_ids is not None:
        return answer.token_ids == reference.token_ids
    return answer.text == reference.text


def agreement(answer: Answer, reference: Answer) -> float:
    """Share of the longer answer's places with the same token, or word if tokens are hidden."""
    ours: Sequence[Any] = answer.text.split()
    theirs: Sequence[Any] = reference.text.split()
    if answer.token_ids is not None and reference.token_ids is not None:
        ours, theirs = answer.token_ids, reference.token_ids
    longer = max(len(ours), len(theirs))
    if not longer:
        return 1.0
    return sum(a == b for a, b in zip(ours, theirs, strict=False)) / longer


def loops(text: str) -> bool:
    """Whether a text ends in a piece that is repeated at least three times, over 60 characters."""
    size = len(text)
    for period in range(1, size // _LEAST_TURNS + 1):
        length = period
        while length < size and text[-length - 1] == text[-length - 1 + period]:
            length += 1
        if length >= max(_LEAST_LOOP, _LEAST_TURNS * period):
            return True
    return False


def is_json(text: str) -> bool:
    """Whether a text is JSON, perhaps in a fence."""
    stripped = text.strip()
    if stripped.startswith("```"):
        stripped = stripped.split("\n", 1)[-1].rsplit("```", 1)[0]
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True
