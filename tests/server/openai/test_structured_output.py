"""`response_format`: answers that fit a schema."""

import json

import openai
import pytest

from tests.server.asking import (
    LOSSLESS,
    SCHEMA,
    TOOL,
    ask,
    in_mode,
    refused,
)


@pytest.mark.parametrize("mode", LOSSLESS)
def test_an_answer_fits_its_schema_in_every_lossless_mode(client, mode):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    answer = ask(client, response_format=form, extra_body={"decoding": {"mode": mode}})
    assert 0 <= json.loads(answer.choices[0].message.content)["n"] <= 9
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == ask(
        client, response_format=form, extra_body={"decoding": {"mode": "ar"}}
    ).choices[0].message.content  # fmt: skip


@pytest.mark.parametrize("mode", LOSSLESS)
def test_structured_output_holds_in_every_lossless_mode(client, mode):
    """With speculation too, and in streams."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    fields = {"response_format": form, "max_tokens": 60, "extra_body": in_mode(mode)}
    whole = ask(client, **fields).choices[0].message.content
    assert 0 <= json.loads(whole)["n"] <= 9
    chunks = ask(client, stream=True, **fields)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"tools": [TOOL]}]
)
def test_diffusion_refuses_forms_at_once_and_names_both_fields(client, fields):
    with pytest.raises(openai.BadRequestError, match=r"decoding\.mode.*response_format"):
        ask(client, extra_body={"decoding": {"mode": "diffusion"}}, **fields)


def test_a_schema_that_is_none_is_named(client):
    """By the field it came in."""
    bad = {"name": "n", "schema": {"type": "foo"}}
    form = {"type": "json_schema", "json_schema": bad}
    assert refused(client, response_format=form) == "response_format.json_schema.schema"
    function = {"name": "f", "parameters": {"type": "foo"}, "strict": True}
    tool = {"type": "function", "function": function}
    assert refused(client, tools=[tool]) == "tools[0].function.parameters.type"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("response_format.type", {"response_format": {"type": "xml"}}),
        ("response_format.json_schema.schema", {"response_format": {"type": "json_schema"}}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": "always"}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tools[0].type", {"tools": [{"type": "browser"}]}),
        ("logit_bias", {"logit_bias": {"999999": 1}}),
        ("logit_bias", {"logit_bias": {"x": 1}}),
        ("prediction.type", {"extra_body": {"prediction": {"type": "file"}}}),
    ],
)
def test_what_is_wrong_is_named(client, field, fields):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == field
