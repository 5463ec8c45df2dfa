"""How right an answer is, against a reference: the scorers that `--score` names."""

import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trimode.errors import InputError
from trimode.evaluation.sandbox import check_sandbox, run_python
from trimode.rows import near_miss


@dataclass(frozen=True, slots=True)
class Score:
    """How right one answer is."""

    value: float
    """From 0, wrong, to 1, right."""
    detail: str = ""
    """Why it is not 1, for a person."""

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:  # also what is no number
            raise InputError("score", str(self.value), "must be from 0 to 1")


class Scorer(Protocol):
    """Judges an answer. It raises InputError if the reference is missing or of no use to it."""

    def __call__(self, answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
        """Score an answer.

        Args:
            answer: the text of the model.
            reference: what the row says is right.
            row: all columns of the row.
        """
        ...


_RIGHT = Score(1.0)


def scorer(name: str, *, sandbox: bool = True) -> Scorer:
    """The scorer of a name.

    Args:
        name: `exact`, `contains`, `numeric`, `json`, `regex`, `python-tests`, or MODULE:FUNCTION, a
            function `(answer, reference, row)` of the user's own. It returns a `Score`, a number
            from 0 to 1 or a bool.
        sandbox: whether answers that are run as code run in bubblewrap.

    Raises:
        InputError: there is no such scorer, or code cannot be run in a sandbox here.
    """
    if name in _SCORERS:
        return _SCORERS[name]
    if name == "python-tests":
        if sandbox:
            check_sandbox()
        return _python_tests(sandbox)
    if ":" in name:
        return _own(name)
    meant = near_miss(name, NAMES)
    allowed = f"allowed: {', '.join(NAMES)}" + (f" ({meant}?)" if meant else "")
    raise InputError("score", repr(name), allowed)


def exact(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
    """Equal but for white space around it; a list of references allows each of them."""
    del row
    wanted = _texts(reference)
    if answer.strip() in (text.strip() for text in wanted):
        return _RIGHT
    return Score(0.0, f"not {_shown(wanted[0])}")


def contains(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
    """The reference stands in the answer as words of its own, in capitals or not."""
    del row
    wanted = _texts(reference)
    for text in wanted:
        plain = re.escape(text.strip())
        before = r"(?<!\w)" if text.strip()[:1].isalnum() else ""
        after = r"(?!\w)" if text.strip()[-1:].isalnum() else ""
        if re.search(before + plain + after, answer, re.IGNORECASE):
            return _RIGHT
    return Score(0.0, f"without {_shown(wanted[0])}")


_NUMBER = re.compile(
    r"(?<![\d.])[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+"
)
_STATED = re.compile(r"####|\\boxed\{|answer(?:\s+is\b|\s*[:=])", re.IGNORECASE)
_RELATIVE_ERROR = 1e-6


def numeric(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
    r"""The answer's number is the reference's.

    The answer's number is the first one after its last `####`, `\boxed{` or "answer is"; the last
    one of all if it has none of these. Commas between thousands, currencies and units do not count.
    """
    del row
    wanted = [_number(text) for text in _texts(reference)]
    if None in wanted:
        raise InputError("reference", _shown(_texts(reference)[0]), "must hold a number")
    found = _number(answer)
    if found is None:
        return Score(0.0, "no number")
    for number in wanted:
        assert number is not None
        if math.isclose(found, number, rel_tol=_RELATIVE_ERROR, abs_tol=1e-12):
            return _RIGHT
    return Score(0.0, f"{found:g}, not {wanted[0]:g}")


def _number(text: str) -> float | None:
    """The number that a text comes to."""
    for stated in reversed(list(_STATED.finditer(text))):
        following = _NUMBER.search(text, stated.end())
        if following is not None:
            return float(following[0].replace(",", ""))
    found = _NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def json_value(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
    """The answer is JSON, in a code block or not, and equals the reference as a value."""
    del row
    wanted = reference
    if isinstance(reference, str):
        try:
            wanted = json.loads(reference)
        except ValueError:
            raise InputError("reference", _shown(reference), "must be JSON") from None
    if reference is None:
        raise InputError("reference", "missing", "must be JSON")
    try:
        found = json.loads(_block(answer))
    except (ValueError, RecursionError) as error:
        return Score(0.0, f"not JSON ({error})")
    place = _difference(found, wanted, "$")
    return _RIGHT if place is None else Score(0.0, f"differs at {place}")


def _difference(found: Any, wanted: Any, place: str) -> str | None:
    """Where two JSON values differ first; 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in [*wanted, *found]:
            if name not in found or name not in wanted:
                return f"{place}.{name}"
            below = _difference(found[name], wanted[name], f"{place}.{name}")
            if below is not None:
                return below
        return None
    if isinstance(found, list) and isinstance(wanted, list):
        for i, (ours, theirs) in enumerate(zip(found, wanted, strict=False)):
            below = _difference(ours, theirs, f"{place}[{i}]")
            if below is not None:
                return below
        shorter = min(len(found), len(wanted))
        return None if len(found) == len(wanted) else f"{place}[{shorter}]"
    same_kind = isinstance(found, bool) == isinstance(wanted, bool)
    return None if same_kind and found == wanted else place


def regex(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
    """The reference, a pattern of Python's `re`, is found in the answer."""
    del row
    wanted = _texts(reference)
    for pattern in wanted:
        try:
            if re.search(pattern, answer):
                return _RIGHT
        except re.error as error:
            found = f"{_shown(pattern)} ({error})"
            raise InputError("reference", found, "must be a regular expression") from None
    return Score(0.0, f"no match of {_shown(wanted[0])}")


_SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "contains": contains,
    "numeric": numeric,
    "json": json_value,
    "regex": regex,
}
NAMES = (*_SCORERS, "python-tests", "MODULE:FUNCTION")
"""Everything that `scorer` takes."""


def _python_tests(sandbox: bool) -> Scorer:
    def score(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
        """The answer's code runs, and then the tests of the reference."""
        outcome = run_python(program_of(answer, reference, row), sandbox=sandbox)
        return _RIGHT if outcome.passed else Score(0.0, outcome.detail)

    return score


def program_of(answer: str, reference: Any, row: Mapping[str, Any]) -> str:
    """The program that tests an answer.

    Args:
        answer: code, or text with one code block; code that goes on from the row's `prompt` if the
            prompt begins the function `entry_point` and the answer does not define it.
        reference: tests as source, or a list of them.
        row: `test_setup_code` runs before the tests; HumanEval's `check` gets `entry_point`.
    """
    tests = "\n".join(_texts(reference))
    code, entry = _block(answer), row.get("entry_point")
    if isinstance(entry, str) and entry:
        name = re.escape(entry)
        defined = re.compile(rf"^\s*(?:async\s+)?(?:def|class)\s+{name}\b|^{name}\s*=", re.M)
        prompt = row.get("prompt")
        if isinstance(prompt, str) and defined.search(prompt) and not defined.search(code):
            code = prompt + (answer if "```" not in answer else code)
        if re.search(r"^def check\(", tests, re.M) and not re.search(r"^check\(", tests, re.M):
            tests += f"\ncheck({entry})"
    setup = row.get("test_setup_code")
    return "\n".join([code, setup if isinstance(setup, str) else "", tests, ""])


_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.M | re.S)


def _block(answer: str) -> str:
    """The content of an answer's code blocks, or all of it if there is none."""
    found = _FENCE.findall(answer)
    return "\n".join(found) if found else answer


def _own(name: str) -> Scorer:
    """A function of the user's own: MODULE:FUNCTION, found from the working directory too."""
    module, _, attribute = name.partition(":")
    with _working_directory_importable():
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError("score", f"{name!r} ({error})", "MODULE:FUNCTION") from None
    if not callable(function):
        raise InputError("score", f"{name!r}, which is no function", "MODULE:FUNCTION")
    return _as_score(function, name)


def _as_score(function: Callable[..., Any], name: str) -> Scorer:
    def score(answer: str, reference: Any, row: Mapping[str, Any]) -> Score:
        found = function(answer, reference, row)
        if isinstance(found, Score):
            return found
        if isinstance(found, bool | int | float):
            return Score(float(found))
        allowed = "must be a Score, a number from 0 to 1 or a bool"
        raise InputError("score", f"{name} returned {type(found).__name__}", allowed)

    return score


@contextmanager
def _working_directory_importable():  # noqa: ANN202 - a context manager
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _texts(reference: Any) -> Sequence[str]:
    """The reference as texts, at least one of them.

    Raises:
        InputError: it is missing, or holds something else.
    """
    values = reference if isinstance(reference, list | tuple) else [reference]
    found = [_text(value) for value in values]
    if not found or not any(text.strip() for text in found):
        raise InputError("reference", "missing", "each row that is scored needs one")
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise InputError(
        "reference", type(value).__name__, "must be a text, a number or a list of them"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
