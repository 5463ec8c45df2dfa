"""/v1/chat/completions through the official client: messages, choices, limits, penalties."""

import openai
import pytest

from tests.server.asking import (
    HI,
    MODES,
    TOOL,
    ask,
    constant,
    decoding,
    in_mode,
    refused,
)
from tests.server.stream_reader import CHAT, read
from trimode import generate

PREDICTION = {"type": "content", "content": "something"}


@pytest.mark.parametrize("mode", ["ar", "linear", "quadratic", "diffusion", "auto"])
def test_an_answer_is_that_of_the_library_in_every_mode(client, model, mode):
    answer = ask(client, extra_body=in_mode(mode))
    expected = generate(model, HI, max_tokens=24, **decoding(mode))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    done = answer.model_extra["metrics"]["decoding"]
    assert done["mode"] == expected.mode
    if mode == "auto":  # what it does depends on the machine and on the requests before
        assert sum(done["plans"].values()) == done["nfe"] - 1  # the prompt's
    else:
        assert done["nfe"] == expected.stats.nfe


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
        done = answer.model_extra["metrics"]["decoding"]
        assert (done["mode"], done["mode_reason"]) == (mode, reason)


def test_messages_take_every_form(client, model):
    """Roles, parts, null content beside calls: the prompt shows them all."""
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"n": 4}'}}
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": "U"}, {"type": "text", "text": "V"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "R"},
    ]
    told = [
        {"role": "system", "content": "D"},
        {"role": "user", "content": "UV"},
        {"role": "assistant",
         "content": '<tool_call>\n{"name": "add", "arguments": {"n": 4}}\n</tool_call>'},
        {"role": "tool", "content": "R"},
    ]  # fmt: skip
    answer = ask(client, messages=messages, max_tokens=12)
    expected = generate(model, told, max_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "king", "content": "a"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:x"}]},
         "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
         "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 7}}]},
         "messages[0].content[0].image_url.url"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
         "messages[0].content[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
         "messages[0].tool_calls[0].function.arguments"),
    ],
)  # fmt: skip
def test_messages_that_are_wrong_are_named(client, message, param):
    """Down to the part."""
    assert refused(client, messages=[message]) == param


def test_choices_have_their_own_index_and_seed(client):
    """`n`; `metrics` is null where it would have to speak of several."""
    answer = ask(client, n=3, seed=5, temperature=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert answer.model_extra["metrics"] is None
    streamed = dict.fromkeys(range(3), "")
    for chunk in ask(client, n=3, seed=5, temperature=1, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert [*streamed.values()] == texts
    assert ask(client, seed=5, temperature=1).choices[0].message.content == texts[0]


@pytest.mark.parametrize("mode", MODES)
def test_max_completion_tokens_wins_and_is_exact(plain, mode):
    """A block that overshoots is cut; 0 and less are refused under the name given."""
    fields = {"max_completion_tokens": 6, "max_tokens": 9, "extra_body": in_mode(mode, 4)}
    answer = ask(plain, **fields)
    assert answer.usage.completion_tokens == 6
    assert len(answer.choices[0].message.content) == 6
    assert answer.choices[0].finish_reason == "length"
    for name in ("max_completion_tokens", "max_tokens"):
        for wrong in (0, -2):
            assert refused(plain, **{"max_tokens": 5, name: wrong}) == name


def test_finish_reasons_are_openais(client, url):
    """`stop`, `length`, `tool_calls`; the key is in every choice of a stream."""
    form = constant("x")
    reasons = {
        "length": {"max_tokens": 2, "extra_body": {"ignore_eos": True}},
        "stop": {"response_format": form, "max_tokens": 60},
        "tool_calls": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 400,
                       "parallel_tool_calls": False},
    }  # fmt: skip
    for reason, fields in reasons.items():
        assert ask(client, **fields).choices[0].finish_reason == reason
        *others, last = [
            chunk.choices[0].finish_reason for chunk in ask(client, stream=True, **fields)
        ]
        assert (last, set(others)) == (reason, {None})
    for chunk in read(url, CHAT, {"model": "tiny", "messages": HI, "max_tokens": 3})[0]:
        assert all("finish_reason" in choice for choice in chunk["choices"])


def test_penalties_and_bias_are_the_librarys(client, model):
    asked = {"frequency_penalty": 1.5, "presence_penalty": -0.5}
    expected = generate(model, HI, max_tokens=24, logit_bias={"9": 3.0}, **asked)
    found = ask(client, max_tokens=24, logit_bias={"9": 3.0}, **asked)
    assert found.choices[0].message.content == expected.text
    assert expected.text != generate(model, HI, max_tokens=24).text


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
