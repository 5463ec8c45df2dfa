"""What can be said of an answer without a reference: loops, ends, validity, agreement with ar."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

_LONGEST_PERIOD = 400
_LEAST_REPEATED = 60
_LEAST_TIMES = 4


def loop_at_end(text: str) -> str | None:
    """What an answer repeats at its end, at least four times and over at least 60 characters.

    Letters count rather than words, so that languages without spaces are judged too. Lines of one
    character, such as the rule of a table, are no loop.
    """
    tail = text.rstrip()
    for period in range(1, min(_LONGEST_PERIOD, len(tail) // _LEAST_TIMES) + 1):
        unit = tail[-period:]
        times = max(_LEAST_TIMES, -(-_LEAST_REPEATED // period))
        if len(set(unit.strip())) > 1 and tail.endswith(unit * times):
            return unit.strip()
    return None


def is_truncated(finish_reason: str | None) -> bool:
    """Whether the budget ended an answer, in the words of our engine and of OpenAI's protocol."""
    return finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an answer is the reference's, token by token."""

    equal: bool
    first_difference: int | None
    """Number of the first token that differs; the shorter one's length if it is the beginning of
    the longer one; None if they are equal."""
    per_token: float
    """Share of the longer one's places that hold the same token."""


def agreement(answer: Sequence[object], reference: Sequence[object]) -> Agreement:
    """Compare two answers, of token ids, or of words where there are no ids."""
    same = [ours == theirs for ours, theirs in zip(answer, reference, strict=False)]
    longer = max(len(answer), len(reference))
    equal = len(answer) == len(reference) and all(same)
    first = None if equal else next((i for i, s in enumerate(same) if not s), len(same))
    return Agreement(equal, first, sum(same) / longer if longer else 1.0)


def share_equal(found: Iterable[Agreement]) -> float | None:
    """Share of answers that equal their reference; None if there is no answer."""
    equal = [each.equal for each in found]
    return sum(equal) / len(equal) if equal else None


def schema_problem(answer: str, schema: dict[str, Any]) -> str | None:
    """Why an answer is not the JSON that was asked for, or None if it is.

    Keywords that are read: type, enum, const, properties, required, additionalProperties, items,
    prefixItems, anyOf, oneOf, allOf, not, `$ref` inside the schema, and the bounds of numbers,
    texts and lists.
    """
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return _Check(schema).problem(value, schema, "$")


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@dataclass(frozen=True, slots=True)
class _Check:
    root: dict[str, Any]

    def problem(self, value: Any, schema: Any, place: str) -> str | None:
        """The first thing at which a value does not fit."""
        if isinstance(schema, bool):
            return None if schema else f"{place}: not allowed"
        if "$ref" in schema:
            schema = self._resolved(schema["$ref"])
        own = self._own_problem(value, schema, place)
        if own is not None:
            return own
        if isinstance(value, dict):
            return self._in_object(value, schema, place)
        if isinstance(value, list):
            return self._in_list(value, schema, place)
        return None

    def _resolved(self, reference: str) -> Any:
        found: Any = self.root
        for part in reference.removeprefix("#").strip("/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")] if part else found
        return found

    def _own_problem(self, value: Any, schema: dict[str, Any], place: str) -> str | None:
        """What is wrong with a value apart from what it holds."""
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        if types and not any(_is_a(value, each) for each in types):
            return f"{place}: {type(value).__name__}, not {' or '.join(types)}"
        if "enum" in schema and not any(_same(value, each) for each in schema["enum"]):
            return f"{place}: {value!r} is not one of {schema['enum']}"
        if "const" in schema and not _same(value, schema["const"]):
            return f"{place}: {value!r}, not {schema['const']!r}"
        fits = {
            name: [self.problem(value, each, place) is None for each in schema[name]]
            for name in ("anyOf", "oneOf", "allOf")
            if name in schema
        }
        if not any(fits.get("anyOf", [True])) or not all(fits.get("allOf", [True])):
            return f"{place}: fits no allowed form"
        if "oneOf" in fits and sum(fits["oneOf"]) != 1:
            return f"{place}: fits {sum(fits['oneOf'])} forms, not one"
        if "not" in schema and self.problem(value, schema["not"], place) is None:
            return f"{place}: of a form that is not allowed"
        return _beyond_bounds(value, schema, place)

    def _in_object(self, value: dict[str, Any], schema: dict[str, Any], place: str) -> str | None:
        for name in schema.get("required", ()):
            if name not in value:
                return f"{place}.{name}: missing"
        properties = schema.get("properties", {})
        others = schema.get("additionalProperties", True)
        for name, each in value.items():
            found = self.problem(each, properties.get(name, others), f"{place}.{name}")
            if found is not None:
                return found
        return None

    def _in_list(self, value: list[Any], schema: dict[str, Any], place: str) -> str | None:
        first = schema.get("prefixItems", [])
        for i, each in enumerate(value):
            wanted = first[i] if i < len(first) else schema.get("items", True)
            found = self.problem(each, wanted, f"{place}[{i}]")
            if found is not None:
                return found
        return None


def _is_a(value: Any, name: str) -> bool:
    if name not in _TYPES or (isinstance(value, bool) and name != "boolean"):
        return False
    whole = name != "integer" or not isinstance(value, float) or value.is_integer()
    return isinstance(value, _TYPES[name]) and whole


def _same(left: Any, right: Any) -> bool:
    return isinstance(left, bool) == isinstance(right, bool) and left == right


_BOUNDS = (
    ("minimum", (int, float), lambda value, bound: value >= bound),
    ("maximum", (int, float), lambda value, bound: value <= bound),
    ("exclusiveMinimum", (int, float), lambda value, bound: value > bound),
    ("exclusiveMaximum", (int, float), lambda value, bound: value < bound),
    ("minLength", (str,), lambda value, bound: len(value) >= bound),
    ("maxLength", (str,), lambda value, bound: len(value) <= bound),
    ("pattern", (str,), lambda value, bound: re.search(bound, value) is not None),
    ("minItems", (list,), lambda value, bound: len(value) >= bound),
    ("maxItems", (list,), lambda value, bound: len(value) <= bound),
)


def _beyond_bounds(value: Any, schema: dict[str, Any], place: str) -> str | None:
    for name, types, holds in _BOUNDS:
        applies = isinstance(value, types) and not isinstance(value, bool)
        if name in schema and applies and not holds(value, schema[name]):
            return f"{place}: {name} is {schema[name]}"
    return None
