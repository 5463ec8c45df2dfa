"""The body object `decoding`: every option in every endpoint, refused by its own name."""

import httpx2 as httpx
import pytest

from tests.server.asking import HI, ask, client_of, in_mode
from tests.server.conftest import serving
from tests.server.stream_reader import CHAT, TEXT
from trimode.config import DECODING_FIELDS, GenerationOptions
from trimode.errors import InputError

RESPONSES = "/v1/responses"
BODIES = {
    CHAT: {"model": "tiny", "messages": HI, "max_tokens": 3},
    TEXT: {"model": "tiny", "prompt": "hi", "max_tokens": 3},
    RESPONSES: {"model": "tiny", "input": "hi", "max_output_tokens": 3},
}
GOOD = [
    ("mode", "quadratic", {}),
    ("block_length", 4, {"mode": "linear"}),
    ("commit_rule", "quota", {"mode": "diffusion"}),
    ("threshold", 0.5, {"mode": "diffusion"}),
    ("threshold", 1, {"mode": "diffusion"}),
    ("max_denoising_steps", 3, {"mode": "diffusion"}),
    ("revision_threshold", 0.125, {"mode": "diffusion"}),
    ("seed_block", False, {"mode": "diffusion"}),
    ("draft_tree", False, {"mode": "quadratic"}),
    ("rolling_block", False, {"mode": "diffusion"}),
    ("spare_drafts", 2, {"mode": "diffusion", "rolling_block": True}),
    ("show_drafts", True, {"mode": "linear"}),
]
WRONG = [
    ("mode", 3), ("mode", "fast"), ("mode", ""),
    ("block_length", "4"), ("block_length", True), ("block_length", 4.5), ("block_length", 0),
    ("commit_rule", 1), ("commit_rule", "best"),
    ("threshold", "high"), ("threshold", True), ("threshold", -1),
    ("max_denoising_steps", [3]), ("max_denoising_steps", 0), ("max_denoising_steps", 2**31),
    ("revision_threshold", "0.1"), ("revision_threshold", 2),
    ("seed_block", 1), ("seed_block", "yes"),
    ("draft_tree", 0),
    ("rolling_block", "true"),
    ("spare_drafts", -1), ("spare_drafts", 1.5),
    ("show_drafts", 1),
    ("steps", 3),
]  # fmt: skip


def post(url, path, decoding, **more):
    return httpx.post(url + path, json={**BODIES[path], "decoding": decoding, **more}, timeout=60)


@pytest.fixture
def seen(served, monkeypatch):
    """The options that reach the engine."""
    engine, options = served[1].worker.engine, []
    add = engine.add

    def recorded(prompt, asked, **more):
        options.append(asked)
        return add(prompt, asked, **more)

    monkeypatch.setattr(engine, "add", recorded)
    return options


def test_all_options_are_tried_here():
    assert {field for field, *_ in GOOD} == set(DECODING_FIELDS)
    assert {field for field, _ in WRONG} == {*DECODING_FIELDS, "steps"}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("field", "value", "others"), GOOD)
def test_an_option_reaches_the_engine(url, seen, path, field, value, others):
    more = {"stream": True} if field == "show_drafts" else {}
    answer = post(url, path, {**others, field: value}, **more)
    if (path, field) == (RESPONSES, "show_drafts"):
        assert answer.json()["error"]["param"] == "decoding.show_drafts"
        return
    assert answer.status_code == 200, answer.text
    (options,) = seen
    assert getattr(options, field) == value
    assert all(getattr(options, name) == other for name, other in others.items())


@pytest.mark.parametrize("path", BODIES)
def test_an_option_that_is_null_is_not_given(url, seen, path):
    assert post(url, path, dict.fromkeys(DECODING_FIELDS)).status_code == 200
    (options,) = seen
    plain = GenerationOptions()
    assert all(getattr(options, field) == getattr(plain, field) for field in DECODING_FIELDS)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name(url, seen, path, field, value):
    answer = post(url, path, {field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == f"decoding.{field}"
    assert not seen


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", DECODING_FIELDS)
def test_what_the_engine_refuses_is_named_as_in_the_body(served, monkeypatch, path, field):
    def refuse(*_, **more):
        raise InputError(field, "given", "leave it out")

    monkeypatch.setattr(served[1].worker.engine, "add", refuse)
    answer = post(served[0], path, {})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == f"decoding.{field}"


def test_defaults_of_the_server_are_no_obstacle_to_another_mode(model):
    defaults = GenerationOptions(
        mode="diffusion", threshold=0.9, block_length=4, commit_rule="margin", max_tokens=4
    )
    with serving(model, defaults=defaults) as (url, _):
        client = client_of(url)
        for mode in ("ar", "linear", "quadratic", "auto"):
            assert ask(client, extra_body=in_mode(mode)).usage.completion_tokens <= 4
            assert ask(client, model=f"tiny:{mode}").usage.completion_tokens <= 4


def test_the_schema_explains_every_option(url):
    schema = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]["DecodingFields"]
    explained = {name: field["description"] for name, field in schema["properties"].items()}
    assert explained == DECODING_FIELDS
