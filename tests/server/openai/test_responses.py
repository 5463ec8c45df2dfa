"""/v1/responses: the answer of chat, as items and typed events."""

import http.client
import json
from urllib.parse import urlsplit

import openai
import pytest
from pydantic import TypeAdapter

from tests.server.asking import (
    ask,
    constant,
)


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


def test_responses_are_typed_events(client, url):
    """Each validates as the client's own type, in order; names and numbers fit."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    asked = {"model": "tiny", "input": "hi", "temperature": 0, "max_output_tokens": 9}
    connection.request("POST", "/v1/responses", json.dumps({**asked, "stream": True}).encode(),
                       {"Content-Type": "application/json"})  # fmt: skip
    raw = connection.getresponse().read().decode().removesuffix("\n\n").split("\n\n")
    published = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    kinds = []
    for number, event in enumerate(raw):
        name, data = event.split("\n")
        found = json.loads(data.removeprefix("data: "))
        assert name == f"event: {found['type']}"
        assert found["sequence_number"] == number
        published.validate_python(found)
        kinds.append(found["type"].removeprefix("response."))
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    ends = ["output_text.done", "content_part.done", "output_item.done"]
    assert kinds[-4:] in ([*ends, "completed"], [*ends, "incomplete"])
    schema = constant("x")["json_schema"]
    complete = {
        **asked,
        "max_output_tokens": 60,
        "text": {"format": {"type": "json_schema", **schema}},
    }
    with client.responses.stream(**complete) as events:
        assert json.loads(events.get_final_response().output_text) == {"t": "x"}
    refused = {
        "background": True,
        "include": ["message.output_text.logprobs"],
        "max_output_tokens": 0,
        "previous_response_id": "r",
        "reasoning": {"effort": "much"},
        "tools": [{"type": "function", "name": ""}],
        "truncation": "last",
    }
    named = {"reasoning": "reasoning.effort", "tools": "tools[0].function.name"}
    for field, value in refused.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**{**asked, field: value})
        assert caught.value.param == named.get(field, field)
