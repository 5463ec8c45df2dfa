"""Fields that are unknown, have no effect, or are not supported."""

import logging

import pytest

from tests.server.asking import (
    ask,
    refused,
)


def test_fields_that_ask_for_nothing_pass(client):
    ask(client, frequency_penalty=0, presence_penalty=0, response_format={"type": "text"}, user="u")


def test_unknown_fields_pass_and_are_logged_once(client, caplog):
    """What nobody knows is ignored, and whoever runs the server can see it."""
    with caplog.at_level(logging.WARNING, "trimode.server"):
        for _ in range(2):
            ask(client, max_tokens=1, user="u", metadata={"a": "b"}, extra_body={"sparkle": 1})
    logged = [record.facts["field"] for record in caplog.records if record.msg == "ignored"]
    assert logged == ["sparkle"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "a", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("mirostat", 2),
        ("typical_p", 0.5),
        ("use_beam_search", True),
        ("chat_template", "{{ messages }}"),
        ("verbosity", "low"),
        ("store", True),
        ("web_search_options", {}),
        ("best_of", 2),
        ("suffix", "x"),
    ],
)
def test_known_fields_are_honoured_or_refused(client, field, value):
    """With a value that asks for something; the default passes."""
    assert refused(client, extra_body={field: value}) == field
    harmless = {"functions": [], "modalities": ["text"], "store": False}
    ask(client, max_tokens=1, extra_body={field: harmless.get(field)})
