"""JSON schemas of requests, made fit for the grammar library.

The library knows most of JSON Schema. What it does not know is refused if the request says
`strict`, and left unenforced otherwise, with a warning.
"""

import re
from collections.abc import Callable
from typing import Any

from trimode.errors import InputError
from trimode.text import JSON_STYLE

Schema = dict[str, Any]

_LOOK_AROUND = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]")
"""Look-ahead, look-behind and back-references: no automaton matches them."""

_COMBINATORS = ("allOf", "anyOf", "oneOf", "$ref", "not", "if", "patternProperties")


def documented(schema: Schema, *, lenient: bool) -> Schema:
    """The schema with the library's options at its root: our JSON style, and leniency."""
    options: dict[str, Any] = {**JSON_STYLE, **({"lenient": True} if lenient else {})}
    return {**schema, "x-guidance": options}


def without_impossible_patterns(schema: Schema) -> tuple[Schema, list[str]]:
    """The schema without regular expressions that look around, and those that were dropped."""
    dropped: list[str] = []

    def keep(place: Schema) -> Schema:
        pattern = place.get("pattern")
        if isinstance(pattern, str) and _LOOK_AROUND.search(pattern):
            dropped.append(f"pattern {pattern!r}")
            return {name: value for name, value in place.items() if name != "pattern"}
        return place

    return _mapped(schema, keep), dropped


def arguments_schema(parameters: Schema | None, field: str) -> Schema:
    """The schema of a call's arguments: an object that has the declared keys and no others.

    A schema that says what other keys may be is left alone, and so is one without `properties`.

    Raises:
        InputError: the schema is of something else than an object.
    """
    if parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    kind = parameters.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise InputError(f"{field}.type", repr(kind), "arguments are an object")
    clean = without_nulls(parameters)
    if not _mentions(clean, ("allOf", "if")):
        clean = _mapped(clean, _closed)
    if "$ref" in clean or any(name in clean for name in ("anyOf", "oneOf", "allOf")):
        return {**clean, "type": "object"}
    return _closed({**clean, "type": "object"})


_MAY_BE_NULL = ("const", "default", "example")
"""Keywords whose value is any JSON value."""


def without_nulls(schema: Schema) -> Schema:
    """The schema without keywords that are null, which some writers mean by leaving them out."""

    def keep(place: Schema) -> Schema:
        return {name: v for name, v in place.items() if v is not None or name in _MAY_BE_NULL}

    return _mapped(schema, keep)


def _closed(place: Schema) -> Schema:
    properties = place.get("properties")
    says = any(name in place for name in ("additionalProperties", "unevaluatedProperties"))
    if not isinstance(properties, dict) or says or any(name in place for name in _COMBINATORS):
        return place
    required = place.get("required")
    if isinstance(required, list) and not all(name in properties for name in required):
        return place
    return {**place, "additionalProperties": False}


_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "contains", "not", "if", "then", "else")


def _mapped(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """A copy of a schema with every schema in it changed; values such as `enum` stay."""
    if not isinstance(schema, dict):
        return schema
    found: Schema = {}
    for name, value in schema.items():
        if name in _OF_SCHEMAS and isinstance(value, dict):
            value = {key: _mapped(one, change) for key, one in value.items()}
        elif name in _LISTS and isinstance(value, list):
            value = [_mapped(one, change) for one in value]
        elif name in _SINGLE:
            value = _mapped(value, change)
        found[name] = value
    return change(found)


def _mentions(schema: Any, names: tuple[str, ...]) -> bool:
    seen = False

    def look(place: Schema) -> Schema:
        nonlocal seen
        seen = seen or any(name in place for name in names)
        return place

    _mapped(schema, look)
    return seen
