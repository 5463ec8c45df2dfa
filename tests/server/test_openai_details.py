"""The 27 details of OpenAI's API that servers get wrong, each with the real client.

One list to check off: the number in a docstring is the detail's. Raw HTTP where the client hides
what is on the wire; every chunk of every stream against the schema is in test_wire.py.
"""

import http.client
import json
import logging
import re
from urllib.parse import urlsplit

import httpx2 as httpx
import openai
import pytest
from pydantic import TypeAdapter

from tests.cli.conftest import write_printable_checkpoint
from tests.server.conftest import serving
from tests.server.wire import CHUNKS, raw_events, read
from trimode import generate, load
from trimode.config import GenerationOptions
from trimode.engine import encode_prompt
from trimode.engine.score import score
from trimode.server.runtime import fingerprint
from trimode.testing import tiny_model

CHAT, TEXT = CHUNKS
MODES = ("ar", "linear", "quadratic", "diffusion", "auto")
LOSSLESS = ("ar", "linear", "quadratic", "auto")
HI = [{"role": "user", "content": "hi"}]
LONG = GenerationOptions(max_tokens=900, ignore_eos=True)
NUMBER = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
          "required": ["n"], "additionalProperties": False}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "add", "parameters": NUMBER}}


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Greedy answers of letters, without an end."""
    return load(write_printable_checkpoint(tmp_path_factory.mktemp("model") / "m"), dtype="fp32")


@pytest.fixture(scope="module")
def plain(letters):
    with serving(letters) as (url, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(client, **fields):
    fields = {"model": "tiny", "messages": HI, "temperature": 0, **fields}
    return client.chat.completions.create(**fields)


def in_mode(mode, block_length=4, **more):
    return {"decoding": {"mode": mode, "block_length": block_length, **more}}


def constant(text):
    schema = {"type": "object", "properties": {"t": {"const": text}}, "required": ["t"],
              "additionalProperties": False}  # fmt: skip
    return {"type": "json_schema", "json_schema": {"name": "t", "schema": schema, "strict": True}}


def refused(client, **fields):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **fields)
    return caught.value.param


@pytest.mark.parametrize("path", CHUNKS)
def test_usage_comes_when_asked_and_is_null_before(url, path):
    """1. `stream_options.include_usage`."""
    body = {"model": "tiny", "max_tokens": 4, "prompt": "a", "messages": HI}
    chunks, _ = read(url, path, body)
    assert not any("usage" in chunk for chunk in chunks)
    *others, last = read(url, path, {**body, "stream_options": {"include_usage": True}})[0]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in others)
    answer = httpx.post(url + path, json={**body, "stream_options": {"include_usage": True}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize("mode", MODES)
def test_chunks_come_in_their_order_with_one_finish(client, mode):
    """2. Role, text, one `finish_reason`, usage, `[DONE]`."""
    chunks = [*ask(client, stream=True, stream_options={"include_usage": True}, max_tokens=9,
                   extra_body=in_mode(mode, show_drafts=True))]  # fmt: skip
    first, *texts, finish, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert not any(c.choices[0].finish_reason or c.choices[0].delta.role for c in texts)
    assert finish.choices[0].finish_reason in ("stop", "length")
    assert usage.choices == []


def test_choices_is_never_null_in_frames_either(client):
    """3. Draft frames keep an empty choice, so `chunk.choices[0]` works."""
    asked = {"stream": True, "extra_body": in_mode("diffusion", show_drafts=True)}
    frames = [c for c in ask(client, **asked) if (c.model_extra or {}).get("trimode")]
    drafts = [c for c in frames if c.model_extra["trimode"]["type"] == "draft"]
    assert drafts
    for chunk in drafts:
        assert chunk.choices[0].delta.model_dump(exclude_unset=True) == {}
        assert chunk.choices[0].finish_reason is None


def test_finish_reasons_are_openais(client, url):
    """4. `stop`, `length`, `tool_calls`; the key is in every choice of a stream."""
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


@pytest.mark.parametrize("mode", MODES)
def test_a_stop_string_ends_the_text_wherever_blocks_are_cut(plain, mode):
    """5. `stop` as a string or many; never in the output; over the edge of a block."""
    body = in_mode(mode, 4)
    full = ask(plain, max_tokens=24, extra_body=body).choices[0].message.content
    assert re.fullmatch("[a-z]{24}", full)
    for start in range(2, 9):  # whatever its place in a block of 4
        stop = full[start : start + 5]
        expected = full[: full.index(stop)]
        answer = ask(plain, stop=stop, max_tokens=24, extra_body=body)
        assert answer.choices[0].message.content == expected
        assert answer.choices[0].finish_reason == "stop"
        many = ["", "0", "1", "2", "3", "4", "5", "6", stop, "7"][1:]
        chunks = ask(plain, stop=many, max_tokens=24, stream=True, extra_body=body)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert ask(plain, stop=[], max_tokens=24, extra_body=body).choices[0].message.content == full


@pytest.mark.parametrize("mode", MODES)
def test_max_completion_tokens_wins_and_is_exact(plain, mode):
    """6. A block that overshoots is cut; 0 and less are refused under the name given."""
    fields = {"max_completion_tokens": 6, "max_tokens": 9, "extra_body": in_mode(mode, 4)}
    answer = ask(plain, **fields)
    assert answer.usage.completion_tokens == 6
    assert len(answer.choices[0].message.content) == 6
    assert answer.choices[0].finish_reason == "length"
    for name in ("max_completion_tokens", "max_tokens"):
        for wrong in (0, -1):
            assert refused(plain, **{"max_tokens": 5, name: wrong}) == name


def test_choices_have_their_own_index_and_seed(client):
    """7. `n`; `metrics` is null where it would have to speak of several."""
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


def test_one_seed_is_one_text_in_every_lossless_mode(client):
    """8. `seed`."""
    fields = {"seed": 11, "temperature": 1.0, "max_tokens": 24}
    texts = {ask(client, extra_body=in_mode(m), **fields).choices[0].message.content
             for m in LOSSLESS}  # fmt: skip
    assert len(texts) == 1
    assert ask(client, **{**fields, "seed": 12}).choices[0].message.content not in texts


def test_the_fingerprint_changes_with_weights_and_dtype(client, model, tmp_path):
    """8. `system_fingerprint`."""
    found = {chunk.system_fingerprint for chunk in ask(client, stream=True)}
    assert found == {ask(client).system_fingerprint} == {fingerprint(model)}
    path = write_printable_checkpoint(tmp_path / "m")
    loaded = [fingerprint(load(path, dtype=dtype)) for dtype in ("fp32", "int8", "fp32")]
    assert loaded[0] == loaded[2]
    assert len({fingerprint(tiny_model(seed=1)), *found, *loaded}) == 4


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_are_complete_and_those_of_ar(client, model, mode):
    """9. All keys, 0 to 20 alternatives; in every mode, diffusion too, AR's probabilities."""
    fields = {"max_tokens": 8, "logprobs": True, "extra_body": in_mode(mode)}
    rows = ask(client, top_logprobs=3, **fields).choices[0].logprobs.content
    own = generate(model, HI, mode=mode, block_length=4, max_tokens=8).token_ids
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
    """9. `top_logprobs` needs `logprobs`, and has a limit."""
    assert refused(client, **fields) == "top_logprobs"


def test_completions_check_the_tokens_they_only_echo(client):
    """10. Token ids, lists and echo; their good cases are in test_completions, test_more_fields."""
    echo = {"model": "tiny", "echo": True, "max_tokens": 0}
    for prompt in ([999_999], [-5], [[]], [[65], [70_000]], [1] * 1025):
        for logprobs in (None, 1):
            with pytest.raises(openai.BadRequestError) as caught:
                client.completions.create(prompt=prompt, logprobs=logprobs, **echo)
            assert caught.value.param == "prompt"
    chunks = client.completions.create(prompt=["ab", "c"], stream=True, logprobs=1, **echo)
    assert "".join(c.choices[0].text for c in chunks) == "abc"
    with pytest.raises(openai.BadRequestError) as caught:  # never fits, so no 429
        client.completions.create(model="tiny", prompt=["a"] * 81)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("mode", LOSSLESS)
def test_structured_output_holds_in_every_lossless_mode(client, mode):
    """11. `response_format`, with speculation; diffusion's 400 is in test_more_fields."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER, "strict": True}}
    fields = {"response_format": form, "max_tokens": 60, "extra_body": in_mode(mode)}
    whole = ask(client, **fields).choices[0].message.content
    assert 0 <= json.loads(whole)["n"] <= 9
    chunks = ask(client, stream=True, **fields)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole


def test_a_schema_that_is_none_is_named(client):
    """11. By the field it came in."""
    bad = {"name": "n", "schema": {"type": "foo"}}
    form = {"type": "json_schema", "json_schema": bad}
    assert refused(client, response_format=form) == "response_format"
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "foo"}}}
    assert refused(client, tools=[tool]) == "tools"


@pytest.mark.parametrize("mode", LOSSLESS)
def test_calls_are_streamed_as_openai_does(client, mode):
    """12. `arguments` a string of JSON; `index` in each delta, `id` and `name` in the first."""
    fields = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 500, "seed": 3}
    chunks = [*ask(client, stream=True, extra_body=in_mode(mode), **fields)]
    calls: dict[int, dict] = {}
    for delta in (d for c in chunks for d in c.choices[0].delta.tool_calls or ()):
        if delta.index not in calls:
            assert delta.id
            assert (delta.type, delta.function.name) == ("function", "add")
            calls[delta.index] = {"id": delta.id, "arguments": ""}
        else:
            assert delta.id is None
        calls[delta.index]["arguments"] += delta.function.arguments
    assert sorted(calls) == list(range(len(calls)))
    assert len({call["id"] for call in calls.values()}) == len(calls) >= 1
    assert all(0 <= json.loads(call["arguments"])["n"] <= 9 for call in calls.values())
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(c.choices[0].delta.content for c in chunks)


def test_messages_take_every_form(client, model):
    """13. Roles, parts, null content beside calls: the prompt shows them all."""
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
         "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
         "messages[0].content[0].type"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
         "messages[0].tool_calls[0].function"),
    ],
)  # fmt: skip
def test_messages_that_are_wrong_are_named(client, message, param):
    """13. Down to the part."""
    assert refused(client, messages=[message]) == param


def test_errors_have_four_keys_and_the_right_class(model, client, url):
    """14. 400 instead of 422, 401, 404, 405, 413; 429, 503 and 500 are in test_operations."""
    body = {"model": "tiny", "messages": HI}
    bad = {**body, "temperature": "hot"}, {**body, "stop": 3}, {**body, "n": "1"}, {"model": "tiny"}
    with serving(model, api_keys=("k",), max_body_bytes=500) as (locked, _):
        answers = [httpx.post(url + CHAT, json=one) for one in bad]
        answers += [
            httpx.post(url + CHAT, content=b"{", headers={"Content-Type": "application/json"}),
            httpx.post(locked + CHAT, json=body),
            httpx.post(url + CHAT, json={**body, "model": "gpt-4"}),
            httpx.get(f"{url}/nowhere"),
            httpx.get(url + CHAT),
            httpx.post(locked + CHAT, json={**body, "pad": "x" * 600}),
        ]
    codes = [400, 400, 400, 400, 400, 401, 404, 404, 405, 413]
    assert [answer.status_code for answer in answers] == codes
    errors = [answer.json()["error"] for answer in answers]
    assert all(set(error) == {"message", "type", "param", "code"} for error in errors)
    assert [error["param"] for error in errors[:4]] == ["temperature", "stop", "n", "messages"]
    assert "'hot'" in errors[0]["message"]
    assert (errors[5]["code"], errors[6]["code"]) == ("invalid_api_key", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        ask(client, model="gpt-4")


def test_an_error_in_a_stream_is_an_error_of_the_client(model):
    """15. Never text in `content`; nothing comes after it."""
    with serving(model, request_timeout=0.1, defaults=LONG) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        chunks = []
        with pytest.raises(openai.APIError, match="not finished within") as caught:
            chunks.extend(ask(client, stream=True))
        assert caught.value.type == "invalid_request_error"
        assert not any("not finished" in (c.choices[0].delta.content or "") for c in chunks)
        assert raw_events(url, TEXT, {"model": "tiny", "prompt": "a"})[-1].startswith(
            'data: {"error"'
        )


def test_unknown_fields_pass_and_are_logged_once(client, caplog):
    """16. What nobody knows is ignored, and whoever runs the server can see it."""
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
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("store", True),
        ("service_tier", "priority"),
        ("web_search_options", {}),
        ("best_of", 2),
        ("suffix", "x"),
    ],
)
def test_known_fields_are_honoured_or_refused(client, field, value):
    """16. With a value that asks for something; the default passes."""
    assert refused(client, extra_body={field: value}) == field
    harmless = {"functions": [], "modalities": ["text"], "store": False, "service_tier": "auto"}
    ask(client, max_tokens=1, extra_body={field: harmless.get(field)})


def test_models_show_what_is_served_and_its_context(client):
    """17. `/v1/models`."""
    (card,) = client.models.list()
    assert set(card.to_dict()) >= {"id", "object", "created", "owned_by"}
    assert (card.id, card.object) == ("tiny", "model")
    assert card.model_extra["max_model_len"] == 1024
    assert client.models.retrieve("tiny") == card


def test_usage_has_its_details(client):
    """18. Cached tokens are part of the prompt, however many choices share it."""
    fields = {"messages": [{"role": "user", "content": "what was said before"}], "max_tokens": 2}
    first, again, three = ask(client, **fields), ask(client, **fields), ask(client, n=3, **fields)
    assert first.usage.completion_tokens_details.reasoning_tokens == 0
    assert first.usage.completion_tokens_details.accepted_prediction_tokens is None
    assert first.usage.prompt_tokens_details.cached_tokens < first.usage.prompt_tokens - 10
    for answer in (again, three):
        assert answer.usage.prompt_tokens == first.usage.prompt_tokens
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert first.usage.prompt_tokens - 2 <= cached <= first.usage.prompt_tokens
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )


@pytest.mark.parametrize("parts", [False, True])
def test_a_prediction_is_a_draft(plain, parts):
    """19. As text or as parts; a wrong one costs nothing but time."""
    text = ask(plain, max_tokens=24).choices[0].message.content
    for content, right in ((text, True), ("0123456789", False)):
        given = [{"type": "text", "text": content}] if parts else content
        asked = {"prediction": {"type": "content", "content": given}, "max_tokens": 24}
        answer = ask(plain, extra_body=in_mode("auto"), **asked)
        assert answer.choices[0].message.content == text
        details = answer.usage.completion_tokens_details
        assert right or details.accepted_prediction_tokens == 0
        chunks = ask(plain, stream=True, stream_options={"include_usage": True}, **asked,
                     extra_body=in_mode("auto"))  # fmt: skip
        assert [*chunks][-1].usage.completion_tokens_details.rejected_prediction_tokens is not None
    for mode in ("ar", "diffusion"):
        assert refused(plain, extra_body=in_mode(mode), **asked) == "prediction"


@pytest.mark.parametrize("mode", MODES)
def test_continuous_usage_counts_what_was_sent(client, mode):
    """20. `continuous_usage_stats`: never ahead of the chunk it is in."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    seen = 0
    for chunk in ask(client, stream=True, max_tokens=40, logprobs=True, stream_options=options,
                     extra_body={**in_mode(mode), "ignore_eos": True}):  # fmt: skip
        for choice in chunk.choices:
            seen += len(choice.logprobs.content) if choice.logprobs else 0
        assert chunk.usage.completion_tokens == seen
        assert chunk.usage.total_tokens == chunk.usage.prompt_tokens + seen
    assert seen == 40


def test_streams_are_kept_open_and_go_through_proxies(model):
    """21. Headers, one `id` and `created`, comments while nothing else is sent."""
    with serving(model, max_sequences=1, ping_interval=0.02, defaults=LONG) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        first = client.completions.create(model="tiny", prompt="a", stream=True)
        events = raw_events(url, CHAT, {"model": "tiny", "messages": HI, "max_tokens": 3})
        assert ": ping" in events[1:]
        assert json.loads(events[0].removeprefix("data: "))["choices"][0]["delta"]["role"]
        first.close()
        with client.chat.completions.with_streaming_response.create(
            model="tiny", messages=HI, max_tokens=3, stream=True
        ) as answer:
            assert answer.headers["cache-control"] == "no-cache"
            assert answer.headers["x-accel-buffering"] == "no"
        busy = client.completions.create(model="tiny", prompt="a", stream=True)
        chunks = [*ask(client, stream=True, max_tokens=3)]  # the client passes over comments
        assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
        busy.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_leaves_is_an_abort(model, mode):
    """22. Decoding ends, the KV cache is free, and the metric says `abort`."""
    with serving(model, defaults=LONG) as (url, service):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = ask(client, stream=True, extra_body=in_mode(mode))
        next(iter(stream))
        stream.close()
        labels = f'finish_reason="abort",mode="{mode}"'
        for _ in range(200):
            if labels in httpx.get(f"{url}/metrics").text:
                break
        assert labels in httpx.get(f"{url}/metrics").text
        assert not service.worker.busy
        assert service.worker.engine.pool.tokens_lent == 0


def test_the_first_chunk_has_the_role_and_empty_content(client, url):
    """23. What the client's helper builds its snapshot from."""
    chunks, _ = read(url, CHAT, {"model": "tiny", "messages": HI, "max_tokens": 2, "n": 2})
    for chunk in chunks[:2]:
        assert chunk["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    for drafts in (False, True):
        with client.chat.completions.stream(
            model="tiny", messages=HI, temperature=0, stream_options={"include_usage": True},
            extra_body=in_mode("linear", show_drafts=drafts),
        ) as events:  # fmt: skip
            snapshot = [event for event in events if event.type == "chunk"][-1].snapshot
        assert snapshot.choices[0].message.role == "assistant"
        assert snapshot.choices[0].message.content == ask(client).choices[0].message.content
        assert snapshot.usage.completion_tokens > 0


@pytest.mark.parametrize("mode", LOSSLESS)
def test_no_chunk_holds_half_a_character(client, mode):
    """24. One token a byte here: a character of four comes out of four commits."""
    form = constant("é€😀ß")
    chunks = [*ask(client, stream=True, response_format=form, max_tokens=60,
                   extra_body=in_mode(mode, 3, show_drafts=True))]  # fmt: skip
    pieces = [c.choices[0].delta.content or "" for c in chunks]
    assert "�" not in "".join(pieces)
    assert json.loads("".join(pieces)) == {"t": "é€😀ß"}
    frames = [c.model_extra["trimode"] for c in chunks if "trimode" in c.model_extra]
    commits = [frame for frame in frames if frame["type"] == "commit"]
    assert "".join("".join(frame["texts"]) for frame in commits) == "".join(pieces)


@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_of_many_tokens_loses_none(plain, mode):
    """25. Text, logprobs and usage agree chunk by chunk, also where a stop string cuts a block."""
    full = ask(plain, max_tokens=24).choices[0].message.content
    prediction = {"prediction": {"type": "content", "content": full}} if mode == "auto" else {}
    fields = {"max_tokens": 24, "logprobs": True, "stream": True, **prediction}
    body = in_mode(mode, 6, **({"threshold": 0.0} if mode == "diffusion" else {}))
    chunks = [*ask(plain, extra_body=body, **fields)]
    texts = [chunk for chunk in chunks if chunk.choices[0].logprobs]
    sizes = [len(chunk.choices[0].logprobs.content) for chunk in texts]
    assert sum(sizes) == 24
    assert mode not in ("diffusion", "auto") or max(sizes) > 1
    for chunk in texts:
        rows = chunk.choices[0].logprobs.content
        assert "".join(row.token for row in rows) == chunk.choices[0].delta.content
    text = "".join(chunk.choices[0].delta.content for chunk in texts)
    cut = [*ask(plain, stop=text[8:11], extra_body=body, **fields)]
    rows = [row for c in cut if c.choices[0].logprobs for row in c.choices[0].logprobs.content]
    stopped = text.index(text[8:11]) + 3
    assert "".join(row.token for row in rows) == text[:stopped]


def test_any_key_is_taken_unless_keys_are_set_and_no_page_may_call(model, url):
    """26. Keys; CORS."""
    for key in ("none", "sk-anything"):
        openai.OpenAI(base_url=f"{url}/v1", api_key=key).models.list()
    page = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for answer in (
        httpx.options(url + CHAT, headers=page),
        httpx.get(f"{url}/health", headers=page),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    simple = {"Origin": "https://example.org", "Content-Type": "text/plain"}
    body = json.dumps({"model": "tiny", "messages": HI}).encode()
    assert httpx.post(url + CHAT, content=body, headers=simple).status_code == 400
    with serving(model, api_keys=("a", "b"), cors_origins=("https://example.org",)) as (locked, _):
        allowed = httpx.options(locked + CHAT, headers=page)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        other = httpx.options(locked + CHAT, headers={**page, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        openai.OpenAI(base_url=f"{locked}/v1", api_key="b").models.list()
        for given in ("b", "Basic b", "Bearer", "Bearer c", "Bearer \u00e9"):
            headers = {"Authorization": given.encode("latin-1")}
            assert httpx.get(f"{locked}/v1/models", headers=headers).status_code == 401


def test_responses_are_typed_events(client, url):
    """27. Each validates as the client's own type, in order; names and numbers fit."""
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
        "reasoning": {"effort": "high"},
        "tools": [TOOL],
        "truncation": "auto",
    }
    for field, value in refused.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**{**asked, field: value})
        assert caught.value.param == field
