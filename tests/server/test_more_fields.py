"""Penalties, structured output, tools, predictions, echo, responses, the admin call."""

import json

import httpx2 as httpx
import openai
import pytest

from tests.server.conftest import serving
from trimode import generate

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
LOSSLESS = ("ar", "linear", "quadratic", "auto")


def ask(client, **fields):
    fields = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 64, **fields}
    return client.chat.completions.create(**fields)


def test_penalties_and_bias_are_the_librarys(client, model):
    asked = {"frequency_penalty": 1.5, "presence_penalty": -0.5}
    expected = generate(model, MESSAGES, max_tokens=24, logit_bias={"9": 3.0}, **asked)
    found = ask(client, max_tokens=24, logit_bias={"9": 3.0}, **asked)
    assert found.choices[0].message.content == expected.text
    assert expected.text != generate(model, MESSAGES, max_tokens=24).text


@pytest.mark.parametrize("mode", LOSSLESS)
def test_an_answer_fits_its_schema_in_every_lossless_mode(client, mode):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    answer = ask(client, response_format=form, extra_body={"decoding": {"mode": mode}})
    assert 0 <= json.loads(answer.choices[0].message.content)["n"] <= 9
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == ask(
        client, response_format=form, extra_body={"decoding": {"mode": "ar"}}
    ).choices[0].message.content  # fmt: skip


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"tools": [TOOL]}]
)
def test_diffusion_refuses_forms_at_once_and_names_both_fields(client, fields):
    with pytest.raises(openai.BadRequestError, match=r"decoding\.mode.*response_format"):
        ask(client, extra_body={"decoding": {"mode": "diffusion"}}, **fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize("mode", ["ar", "linear"])
def test_a_required_tool_is_called(client, mode, choice, stream):
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    other = {"type": "function", "function": {"name": "other", "parameters": nothing}}
    body = {"decoding": {"mode": mode, "block_length": 4}}
    asked = {"tools": [TOOL, other], "tool_choice": choice, "parallel_tool_calls": False}
    if stream:
        with client.chat.completions.stream(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=128, extra_body=body, **asked
        ) as events:
            for _ in events:
                pass
            answer = events.get_final_completion()
    else:
        answer = ask(client, max_tokens=128, extra_body=body, **asked)
    (chosen,) = answer.choices
    assert chosen.finish_reason == "tool_calls"
    assert not chosen.message.content
    (call,) = chosen.message.tool_calls
    assert call.id
    assert call.function.name in ("add", "other")
    arguments = json.loads(call.function.arguments)
    if call.function.name == "add":
        assert 0 <= arguments["n"] <= 9


def test_an_answer_may_be_text_where_tools_are_offered(client):
    plain = ask(client, tools=[TOOL], tool_choice="none", max_tokens=12)
    assert plain.choices[0].message.tool_calls is None
    offered = ask(client, tools=[TOOL], max_tokens=12)
    chunks = ask(client, tools=[TOOL], max_tokens=12, stream=True)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == (offered.choices[0].message.content or "")


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


def test_a_right_prediction_is_accepted_and_reported(client):
    plain = ask(client, max_tokens=24)
    text = plain.choices[0].message.content
    asked = {"prediction": {"type": "content", "content": text}, "max_tokens": 24}
    for mode in ("auto", "linear"):
        found = ask(client, extra_body={"decoding": {"mode": mode}}, **asked)
        assert found.choices[0].message.content == text
        details = found.usage.completion_tokens_details
        assert details.accepted_prediction_tokens >= 0
        assert details.rejected_prediction_tokens >= 0
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens is None
    with pytest.raises(openai.BadRequestError, match="prediction"):
        ask(client, extra_body={"decoding": {"mode": "ar"}}, **asked)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_gives_the_prompt_back_with_its_logprobs(client, model, stream):
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "echo": True}
    if stream:
        text = "".join(c.choices[0].text for c in client.completions.create(stream=True, **asked))
        assert text == "abc" + generate(model, "abc", raw=True, max_tokens=4).text
        return
    (choice,) = client.completions.create(logprobs=2, **asked).choices
    assert choice.text == "abc" + generate(model, "abc", raw=True, max_tokens=4).text
    found = choice.logprobs
    assert found.tokens[:3] == ["a", "b", "c"]
    assert found.token_logprobs[0] is None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset) == 7
    assert found.text_offset[:4] == [0, 1, 2, 3]
    alone = client.completions.create(logprobs=2, **{**asked, "prompt": "ab", "max_tokens": 1})
    following = alone.choices[0].logprobs
    assert following.token_logprobs[:2] == [None, pytest.approx(found.token_logprobs[1], abs=1e-4)]


def test_echo_alone_scores_a_text(client):
    """What lm-evaluation-harness asks of local-completions."""
    found = client.completions.create(
        model="tiny", prompt=[[65, 66, 67], [70, 71]], max_tokens=0, echo=True, logprobs=1
    )
    assert [len(c.logprobs.tokens) for c in found.choices] == [3, 2]
    assert found.usage.completion_tokens == 0
    for choice in found.choices:
        tops = zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True)
        assert all(own is None or own <= max(top.values()) for own, top in tops)


def test_responses_are_the_chat_answer(client):
    text = ask(client, max_tokens=12).choices[0].message.content
    asked = {"model": "tiny", "input": "hi", "temperature": 0, "max_output_tokens": 12}
    found = client.responses.create(**asked)
    assert found.output_text == text
    assert found.usage.output_tokens == 12
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(client.responses.create(stream=True, **asked))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == text
    assert events[0].type == "response.created"
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == text


def test_responses_refuse_what_needs_a_memory(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="hi", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"


def test_the_mode_can_be_changed_while_it_runs(model):
    with serving(model, api_keys=("secret",)) as (url, _):
        headers = {"Authorization": "Bearer secret"}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret")
        assert httpx.put(f"{url}/admin/mode", json={"mode": "linear"}).status_code == 401
        found = httpx.put(f"{url}/admin/mode", json={"mode": "linear"}, headers=headers)
        assert found.json() == {"mode": "linear"}
        answer = ask(client, max_tokens=4)
        assert answer.model_extra["metrics"]["decoding"]["mode"] == "linear"
        wrong = httpx.put(f"{url}/admin/mode", json={"mode": "fast"}, headers=headers)
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "mode")


def test_nobody_changes_a_server_without_keys(url):
    assert httpx.put(f"{url}/admin/mode", json={"mode": "ar"}).status_code == 403
