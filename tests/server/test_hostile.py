"""What one request may not do to the others: limits that are checked before work begins."""

import concurrent.futures
import threading
import time

import httpx2 as httpx
import openai
import pytest

from tests.server.asking import HI, ask, client_of, refused, until
from tests.server.conftest import serving
from trimode import generate
from trimode.testing import saying_model


def chain(links):
    found = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(links)}
    return {"$ref": "#/$defs/d0", "$defs": {**found, f"d{links}": {"type": "integer"}}}


COSTLY = {
    "a schema that overflows the stack": chain(3000),
    "a number that takes gigabytes": {"type": "integer", "multipleOf": 99999989},
    "patterns whose product explodes": {
        "allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnopqrst"]
    },
}


@pytest.mark.parametrize("schema", COSTLY.values(), ids=COSTLY)
def test_a_schema_that_is_too_costly_is_refused_and_stops_nobody(schema):
    """The process lives, others are answered meanwhile, and the field is named."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    with serving(saying_model("abc")) as (url, _):
        client = client_of(url)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            attack = pool.submit(refused, client, response_format=form)
            slowest, answers = 0.0, 0
            while not attack.done() or answers < 3:
                began = time.monotonic()
                assert ask(client, max_tokens=9).choices[0].message.content == "abc"
                slowest, answers = max(slowest, time.monotonic() - began), answers + 1
        assert attack.result() == "response_format.json_schema.schema"
        assert slowest < 5
        small = {"type": "json_object", "schema": {"type": "object", "properties": {}}}
        assert ask(client, response_format=small, max_tokens=9).choices


def test_a_grammar_that_cannot_be_followed_ends_its_own_answer_with_an_error():
    """Never with free text; the others go on."""
    schema = {"type": "array", "minItems": 1, "items": {"$ref": "#"}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    with serving(saying_model("[" * 3000, context=4000)) as (url, _):
        client = client_of(url)
        with pytest.raises(openai.BadRequestError, match="grammar"):
            ask(client, response_format=form, max_tokens=3500)
        with pytest.raises(openai.APIError, match="grammar"):
            for _ in ask(client, response_format=form, max_tokens=3500, stream=True):
                pass
        assert ask(client, max_tokens=3).choices[0].message.content == "[[["


def test_a_failure_touches_its_own_request_only(model, monkeypatch):
    """The others get the answers that they would get alone."""
    from trimode.engine import engine as module

    run = module.run

    def fragile(runner, slices):
        if any(part.sequence.options.seed == 666 for part in slices):
            raise MemoryError("a pass of this one never fits")
        return run(runner, slices)

    monkeypatch.setattr(module, "run", fragile)
    expected = generate(model, HI, max_tokens=200, ignore_eos=True).text
    with serving(model) as (url, service), concurrent.futures.ThreadPoolExecutor() as pool:
        client = client_of(url)
        more = {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
        others = [pool.submit(ask, client, **more) for _ in range(3)]
        with pytest.raises(openai.InternalServerError, match="chatcmpl-"):
            ask(client, seed=666, **more)
        assert [o.result().choices[0].message.content for o in others] == [expected] * 3
        assert not service.worker.engine.busy


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"decoding": {"mode": "quadratic", "block_length": 50}}}, "block_length"),
        ({"extra_body": {"decoding": {"mode": "linear", "block_length": 1000}}}, "block_length"),
        ({"extra_body": {"decoding": {"mode": "diffusion", "block_length": 257}}}, "block_length"),
        ({"stop": ["x"] * 600}, "stop"),
        ({"stop": ["x" * 5000]}, "stop"),
        ({"n": 17}, "n"),
    ],
)
def test_sizes_have_limits(client, fields, param):
    assert refused(client, **fields).removeprefix("decoding.") == param


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenised(client, url):
    """By its length alone, at once, and under OpenAI's code."""
    for messages in ([{"role": "user", "content": "word " * 1_000_000}],):
        began = time.monotonic()
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages=messages)
        assert caught.value.code == "context_length_exceeded"
        assert time.monotonic() - began < 5
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=["a"] * 5000)
    assert caught.value.param == "prompt"
    long = ask_too_long(client)
    assert (long.code, long.param) == ("context_length_exceeded", "messages")
    assert "maximum context length" in str(long)
    assert httpx.get(f"{url}/health").status_code == 200


def ask_too_long(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "a" * 1100}])
    return caught.value


def test_numbers_that_json_does_not_have_name_their_field(url):
    for text in ('{"temperature": NaN}', '{"temperature": 1e400}'):
        found = httpx.post(
            f"{url}/v1/chat/completions",
            content=text,
            headers={"Content-Type": "application/json"},
        )
        assert found.status_code == 400
        assert found.json()["error"]["message"].startswith("temperature")


def test_an_engine_that_is_stuck_is_not_ready(model, monkeypatch):
    from trimode.engine import engine as module
    from trimode.server.runtime import worker

    monkeypatch.setattr(worker, "_STUCK_SECONDS", 0.2)
    run, go_on = module.run, threading.Event()

    def slow(runner, slices):
        go_on.wait(20)
        return run(runner, slices)

    with serving(model) as (url, service), concurrent.futures.ThreadPoolExecutor() as pool:
        assert httpx.get(f"{url}/ready").status_code == 200
        monkeypatch.setattr(module, "run", slow)
        answer = pool.submit(ask, client_of(url), max_tokens=3)
        until(lambda: service.worker.fault)
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200
        go_on.set()
        assert answer.result().usage.completion_tokens == 3
        monkeypatch.setattr(worker, "_STUCK_SECONDS", 60)
        assert httpx.get(f"{url}/ready").status_code == 200
