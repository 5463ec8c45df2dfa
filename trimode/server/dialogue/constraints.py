"""What a request wants its answer to fit, under all the names that servers have for it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trimode.errors import InputError
from trimode.text import gbnf_to_lark

Kind = Literal["json", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that the text of an answer must have."""

    kind: Kind
    value: Any
    """The JSON schema, the regular expression, the list of texts, or the grammar."""
    field: str
    """Where the request gives it, for errors."""
    strict: bool = False
    """JSON: whether a schema that cannot be enforced whole is refused."""


def of_response_format(value: Any, field: str = "response_format") -> Constraint | None:
    """OpenAI's `response_format`, with what other servers put into it.

    `json_object` may have its schema beside it as `schema` (llama.cpp, Together, Fireworks) or
    `value` (Hugging Face). The types `json`, `regex` and `grammar` have theirs as `value`.

    Raises:
        InputError: the type is unknown, or what it needs is missing.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise InputError(field, repr(value)[:80], "must be an object with a type")
    kind = value.get("type", "text")
    if kind == "text":
        return None
    if kind in ("json_object", "json"):
        schema = value.get("schema", value.get("value"))
        return _json({"type": "object"} if schema is None else schema, f"{field}.schema")
    if kind == "json_schema":
        named = value.get("json_schema", value.get("value"))
        if isinstance(named, dict) and "schema" in named:
            place, strict = f"{field}.json_schema.schema", named.get("strict") is True
            return _json(named["schema"], place, strict=strict)
        schema = value.get("schema", named)
        return _json(schema, f"{field}.json_schema.schema", strict=value.get("strict") is True)
    if kind == "regex":
        return _regex(value.get("value", value.get("pattern")), f"{field}.value")
    if kind == "grammar":
        return _grammar(value.get("value", value.get("grammar")), f"{field}.value")
    allowed = "allowed: text, json_object, json_schema, regex, grammar"
    raise InputError(f"{field}.type", repr(kind), allowed)


def of_body(fields: Mapping[str, Any]) -> Constraint | None:
    """The one constraint that a body gives, whichever field it uses.

    Args:
        fields: of the body, by name; those not given are missing or None.

    Raises:
        InputError: several are given, or one is not as its server defines it.
    """
    given = {name: fields[name] for name in _READERS if fields.get(name) is not None}
    found = {name: _READERS[name](value, name) for name, value in given.items()}
    wanted = {name: one for name, one in found.items() if one is not None}
    if len(wanted) > 1:
        raise InputError(" and ".join(wanted), "given together", "give one of them")
    return next(iter(wanted.values()), None)


def _json(schema: Any, field: str, *, strict: bool = False) -> Constraint:
    if isinstance(schema, str):  # vLLM takes the text of a schema too
        try:
            schema = json.loads(schema)
        except ValueError:
            raise InputError(field, repr(schema)[:80], "must be a JSON schema") from None
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise InputError(field, repr(schema)[:80], "must be an object")
    return Constraint("json", schema, field, strict)


def _regex(pattern: Any, field: str) -> Constraint:
    if not isinstance(pattern, str) or not pattern:
        raise InputError(field, repr(pattern)[:80], "must be a regular expression")
    return Constraint("regex", pattern, field)


def _choice(texts: Any, field: str) -> Constraint:
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise InputError(field, repr(texts)[:80], "must be a list of texts, not empty")
    if not all(texts):
        raise InputError(field, "an empty text", "each text needs at least one character")
    return Constraint("choice", tuple(texts), field)


def _grammar(source: Any, field: str) -> Constraint | None:
    """A grammar in llama.cpp's form, which has `::=`, or in Lark's; the empty text is none."""
    if source == "":
        return None
    if not isinstance(source, str):
        raise InputError(field, repr(source)[:80], "must be a grammar, GBNF or Lark")
    if "::=" in source:
        try:
            source = gbnf_to_lark(source)
        except InputError as error:
            raise InputError(field, error.found, "must be a grammar, GBNF or Lark") from None
    return Constraint("lark", source, field)


def _structured(value: Any, field: str) -> Constraint | None:
    """VLLM's `structured_outputs`: one of json, json_object, regex, choice, grammar."""
    if not isinstance(value, dict):
        raise InputError(field, repr(value)[:80], "must be an object")
    known = {"json": _json, "regex": _regex, "choice": _choice, "grammar": _grammar}
    given = {name: v for name, v in value.items() if v not in (None, False)}
    if given.get("json_object") is True:
        given = {name: v for name, v in given.items() if name != "json_object"}
        given.setdefault("json", {"type": "object"})
    if len(given) != 1 or next(iter(given)) not in known:
        found = ", ".join(given) or "nothing"
        allowed = f"needs exactly one of {', '.join(known)}, json_object"
        raise InputError(field, found, allowed)
    ((name, inner),) = given.items()
    return known[name](inner, f"{field}.{name}")


_READERS = {
    "response_format": of_response_format,
    "structured_outputs": _structured,
    "guided_json": _json,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "json_schema": _json,
    "grammar": _grammar,
}
CONSTRAINT_FIELDS = tuple(_READERS)
"""The body fields that give a constraint."""
