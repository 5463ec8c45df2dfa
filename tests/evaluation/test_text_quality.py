import json

import pytest

from trimode.evaluation.text_quality import (
    Agreement,
    agreement,
    is_truncated,
    loop_at_end,
    schema_problem,
    share_equal,
)

try:
    import jsonschema as oracle
except ImportError:
    oracle = None


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("I like it. " * 8, "I like it."),
        ("A story. " + "and then he said that " * 5, "and then he said that"),
        ("很好" * 40, "很好"),
        ("1. a\n" * 20, "1. a"),
        ("the the the", None),
        ("A table:\n" + "-" * 200, None),
        ("One, two, three, four, five, six, seven, eight, nine, ten.", None),
        ("I like it. " * 8 + "But now something else entirely.", None),
        ("", None),
    ],
)  # fmt: skip
def test_loops(text, loop):
    found = loop_at_end(text)
    assert (found is None) == (loop is None)
    if loop is not None:
        assert found is not None
        assert sorted(found.replace(" ", "")) == sorted(
            loop.replace(" ", "")
        )  # it may begin anywhere


def test_truncation_is_the_budgets():
    assert is_truncated("length")
    assert not is_truncated("stop")
    assert not is_truncated(None)


def test_agreement():
    assert agreement([1, 2, 3], [1, 2, 3]) == Agreement(True, None, 1.0)
    assert agreement([1, 9, 3], [1, 2, 3, 4]) == Agreement(False, 1, 0.5)
    assert agreement([1, 2], [1, 2, 3, 4]) == Agreement(False, 2, 0.5)
    assert agreement([], []) == Agreement(True, None, 1.0)
    assert agreement([], [1]) == Agreement(False, 0, 0.0)
    assert share_equal([agreement([1], [1]), agreement([1], [2])]) == 0.5
    assert share_equal([]) is None


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "age": {"type": "integer", "minimum": 0},
        "size": {"enum": ["S", "M"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "either": {"anyOf": [{"type": "null"}, {"const": 1}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
}


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"name": "Anna", "age": 3.0, "size": "S", "tags": ["a"], "either": None}, None),
        ({"age": 3}, "$.name"),
        ({"name": ""}, "$.name"),
        ({"name": "Anna", "age": 3.5}, "$.age"),
        ({"name": "Anna", "age": True}, "$.age"),
        ({"name": "Anna", "age": -1}, "$.age"),
        ({"name": "Anna", "size": "L"}, "$.size"),
        ({"name": "Anna", "tags": ["a", "B"]}, "$.tags[1]"),
        ({"name": "Anna", "tags": ["a", "b", "c"]}, "$.tags"),
        ({"name": "Anna", "either": True}, "$.either"),
        ({"name": "Anna", "other": 1}, "$.other"),
        ([], "$"),
    ],
)
def test_validity_is_that_of_jsonschema(value, place):
    """Where the package jsonschema is installed, it is the oracle."""
    found = schema_problem(json.dumps(value), SCHEMA)
    if oracle is not None:
        assert oracle.Draft202012Validator(SCHEMA).is_valid(value) == (found is None)
    assert (found is None) == (place is None)
    assert place is None or (found or "").startswith(f"{place}:")


def test_what_is_no_json_is_not_valid():
    assert "not JSON" in (schema_problem("{", SCHEMA) or "")
    assert "not JSON" in (schema_problem("Sure! {}", SCHEMA) or "")
