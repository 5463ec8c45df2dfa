"""`logprobs` of chat and completions."""

import pytest

from tests.server.asking import (
    HI,
    MODES,
    ask,
    complete,
    decoding,
    in_mode,
    refused,
)
from trimode import generate
from trimode.engine import encode_prompt
from trimode.engine.score import score


def test_logprobs_match_the_text(client):
    answer = ask(client, logprobs=True, top_logprobs=2, max_tokens=6)
    rows = answer.choices[0].logprobs.content
    assert len(rows) == answer.usage.completion_tokens
    for row in rows:
        assert row.logprob == max(entry.logprob for entry in row.top_logprobs)
        assert len(row.top_logprobs) == 2
    streamed = [
        row
        for chunk in ask(client, logprobs=True, top_logprobs=2, max_tokens=6, stream=True)
        if chunk.choices[0].logprobs
        for row in chunk.choices[0].logprobs.content
    ]
    assert [row.token for row in streamed] == [row.token for row in rows]


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_are_complete_and_those_of_ar(client, model, mode):
    """All keys, 0 to 20 alternatives; in every mode, diffusion too, AR's probabilities."""
    fields = {"max_tokens": 8, "logprobs": True, "extra_body": in_mode(mode)}
    rows = ask(client, top_logprobs=3, **fields).choices[0].logprobs.content
    own = generate(model, HI, max_tokens=8, **decoding(mode)).token_ids
    prompt = encode_prompt(model, HI)
    expected = score(model, [*prompt, *own], 3)[len(prompt) :]
    for row, right in zip(rows, expected, strict=True):
        assert row.logprob == pytest.approx(right.logprob, abs=1e-3)
        assert bytes(row.bytes).decode(errors="replace") == row.token
        assert len(row.top_logprobs) == 3
        assert all(top.bytes is not None and top.token is not None for top in row.top_logprobs)
    none = ask(client, top_logprobs=0, **fields).choices[0].logprobs.content
    assert [row.top_logprobs for row in none] == [[]] * len(rows)
    assert (
        len(ask(client, top_logprobs=20, **fields).choices[0].logprobs.content[0].top_logprobs)
        == 20
    )
    assert ask(client, max_tokens=2).choices[0].logprobs is None


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}])
def test_logprobs_that_make_no_sense_are_refused(client, fields):
    """`top_logprobs` needs `logprobs`, and has a limit."""
    assert refused(client, **fields) == "top_logprobs"


def test_logprobs_come_in_the_old_form(client):
    found = complete(client, "ab", logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 8
    assert max(found.top_logprobs[0].values()) == found.token_logprobs[0]
