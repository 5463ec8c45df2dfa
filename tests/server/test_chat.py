"""/v1/chat/completions through the official client."""

import openai
import pytest

from trimode import generate

MESSAGES = [{"role": "user", "content": "Say something."}]
PREDICTION = {"type": "content", "content": "something"}


def ask(client, **fields):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": MESSAGES, "temperature": 0, **fields}
    )


def text_of(chunks):
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic", "diffusion", "auto"])
def test_an_answer_is_that_of_the_library_in_every_mode(client, model, mode):
    answer = ask(client, extra_body={"decoding": {"mode": mode, "block_length": 4}})
    expected = generate(model, MESSAGES, mode=mode, block_length=4, max_tokens=24)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    decoding = answer.model_extra["metrics"]["decoding"]
    assert decoding["mode"] == expected.mode
    if mode == "auto":  # what it does depends on the machine and on the requests before
        assert sum(decoding["plans"].values()) == decoding["nfe"] - 1  # the prompt's
    else:
        assert decoding["nfe"] == expected.stats.nfe


@pytest.mark.parametrize("mode", ["ar", "linear", "diffusion"])
def test_a_stream_carries_the_same_text_and_ends_once(client, mode):
    body = {"decoding": {"mode": mode, "block_length": 4}}
    whole = ask(client, extra_body=body)
    chunks = list(ask(client, stream=True, extra_body=body))
    assert text_of(chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert not any(reasons[:-1])
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_usage_comes_last_and_alone_when_asked_for(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == ask(client).usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_model_name_may_carry_a_mode(client):
    answer = ask(client, model="tiny:linear")
    assert answer.model_extra["metrics"]["decoding"]["mode"] == "linear"
    assert answer.choices[0].message.content == ask(client).choices[0].message.content


@pytest.mark.parametrize(
    ("fields", "mode", "reason"),
    [
        ({}, "ar", "server_default"),
        ({"model": "tiny:linear_spec"}, "linear", "model_suffix"),
        ({"extra_body": {"decoding": {"mode": "dlm"}}}, "diffusion", "request"),
        ({"model": "tiny:linear", "extra_body": {"decoding": {"mode": "ar"}}}, "ar", "request"),
        ({"model": "tiny:linear", "prediction": PREDICTION}, "auto", "prediction"),
        ({"model": "tiny:auto", "prediction": PREDICTION}, "auto", "model_suffix"),
    ],
)
def test_an_answer_says_which_mode_made_it_and_why(client, fields, mode, reason):
    whole = ask(client, **fields)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = ask(client, **fields, **options)
    for answer in (whole, last):
        decoding = answer.model_extra["metrics"]["decoding"]
        assert (decoding["mode"], decoding["mode_reason"]) == (mode, reason)


def test_one_seed_is_one_text_and_choices_differ(client):
    fields = {"temperature": 1.0, "seed": 5, "n": 3}
    first, again = ask(client, **fields), ask(client, **fields)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert first.usage.prompt_tokens == ask(client).usage.prompt_tokens


def test_without_a_seed_texts_differ(client):
    texts = {ask(client, temperature=1.0).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_a_stop_string_never_leaks(client):
    full = ask(client).choices[0].message.content
    stop = full[6:9]
    answer = ask(client, stop=stop)
    assert answer.choices[0].message.content == full[: full.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(ask(client, stop=[stop], stream=True))
    assert text_of(chunks) == full[: full.index(stop)]


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


def test_drafts_are_sent_to_those_who_ask_and_do_not_disturb_the_text(client):
    body = {"decoding": {"mode": "diffusion", "block_length": 6, "show_drafts": True}}
    chunks = list(ask(client, stream=True, extra_body=body))
    frames = [c.model_extra["trimode"] for c in chunks if "trimode" in (c.model_extra or {})]
    assert {"draft", "commit"} == {frame["type"] for frame in frames}
    assert [frame["seq"] for frame in frames] == list(range(len(frames)))
    plain = ask(client, extra_body={"decoding": {"mode": "diffusion", "block_length": 6}})
    assert text_of(chunks) == plain.choices[0].message.content
    for frame in frames:
        if frame["type"] == "draft":
            assert {state for _, _, state in frame["tokens"]} <= {"mask", "new", "kept", "revised"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"extra_body": {"decoding": {"mode": "fast"}}}, "decoding.mode"),
        ({"extra_body": {"decoding": {"show_drafts": True}}}, "decoding.show_drafts"),
        ({"extra_body": {"decoding": {"steps": 3}}}, "decoding.steps"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"messages": [{"role": "user", "content": "a" * 2000}]}, "messages"),
    ],
)
def test_bad_requests_name_the_field(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_fields_that_ask_for_nothing_pass(client):
    ask(client, frequency_penalty=0, presence_penalty=0, response_format={"type": "text"}, user="u")


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-4")
    assert caught.value.code == "model_not_found"
