"""Ollama's protocol, as its docs/api.md has it; the official client is in tests/clients."""

import json

import httpx2 as httpx
import pytest

from tests.server.asking import MODES
from tests.server.conftest import serving
from tests.server.dialogue.test_answers import OPENING, TEXT, call, tool
from trimode.testing import saying_model

HI = [{"role": "user", "content": "hi"}]


def post(url, path, **fields):
    """As Ollama's users do with curl: nothing says that the body is JSON."""
    return httpx.post(f"{url}/api/{path}", content=json.dumps({"model": "tiny", **fields}))


def both(url, path, **fields):
    """An answer as one object; its lines must say the same."""
    fields["options"] = {"temperature": 0, "num_predict": 200, **fields.get("options", {})}
    whole = post(url, path, stream=False, **fields).json()
    streamed = post(url, path, **fields)
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    *lines, last = (json.loads(line) for line in streamed.text.splitlines())
    assert last["done"]
    assert not any(line["done"] for line in lines)
    assert last["done_reason"] == whole["done_reason"]
    assert last["eval_count"] == whole["eval_count"]
    if path == "chat":
        said = {"content": "", "thinking": ""}
        for line in lines:
            for name in said:
                said[name] += line["message"].get(name) or ""
        assert said["content"] == whole["message"]["content"]
        assert said["thinking"] == whole["message"].get("thinking", "")
        calls = [c["function"] for line in lines for c in line["message"].get("tool_calls", ())]
        assert calls == [c["function"] for c in whole["message"].get("tool_calls", ())]
    else:
        assert "".join(line["response"] for line in lines) == whole["response"]
    return whole


def test_chat():
    with serving(saying_model("Hello")) as (url, _):
        answer = both(url, "chat", messages=HI)
        assert answer["message"] == {"role": "assistant", "content": "Hello"}
        assert (answer["model"], answer["done_reason"]) == ("tiny", "stop")
        assert answer["eval_count"] == 6
        assert answer["prompt_eval_count"] > 0
        assert answer["total_duration"] >= answer["eval_duration"] >= 0
        cut = both(url, "chat", messages=HI, options={"num_predict": 3, "num_ctx": 4096})
        assert (cut["message"]["content"], cut["done_reason"]) == ("Hel", "length")
        stopped = both(url, "chat", messages=HI, options={"stop": ["l"], "num_predict": -1})
        assert stopped["message"]["content"] == "He"


def test_tools_and_thoughts():
    with serving(saying_model("Hm</think>" + call("w", '{"t": "x"}'), template=OPENING)) as (
        url,
        _,
    ):
        answer = both(url, "chat", messages=HI, tools=[tool("w", TEXT)], think=True)
    assert answer["message"]["thinking"] == "Hm"
    (made,) = answer["message"]["tool_calls"]
    assert made["function"] == {"name": "w", "arguments": {"t": "x"}}


@pytest.mark.parametrize("form", ["json", TEXT])
def test_formats(form):
    with serving(saying_model('{"t": "x"}')) as (url, _):
        assert both(url, "chat", messages=HI, format=form)["message"]["content"] == '{"t": "x"}'
        assert both(url, "generate", prompt="a", format=form)["response"] == '{"t": "x"}'
        raw = both(url, "generate", prompt="a", raw=True, format=form,
                   options={"num_predict": 60})  # fmt: skip
        assert raw["response"].startswith("{")


def test_generate_is_a_turn_unless_raw(client, url):
    asked = {"options": {"temperature": 0, "num_predict": 9}}
    turn = both(url, "generate", prompt="hi", system="s", **asked)
    messages = [{"role": "system", "content": "s"}, *HI]
    same = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=9
    )
    assert turn["response"] == same.choices[0].message.content
    raw = both(url, "generate", prompt="hi", raw=True, **asked)
    plain = client.completions.create(model="tiny", prompt="hi", temperature=0, max_tokens=9)
    assert raw["response"] == plain.choices[0].text


def test_a_request_without_a_prompt_asks_whether_the_model_is_there(url):
    assert post(url, "chat", messages=[]).json()["done_reason"] == "load"
    assert post(url, "generate").json()["done_reason"] == "load"
    assert post(url, "generate", model="other").status_code == 404


def test_what_is_served(url):
    names = [model["name"] for model in httpx.get(f"{url}/api/tags").json()["models"]]
    assert names == ["tiny", *(f"tiny:{mode}" for mode in MODES)] or set(names) == {
        "tiny",
        *(f"tiny:{mode}" for mode in MODES),
    }
    for name in (*names, "tiny:latest"):
        answer = post(url, "chat", model=name, messages=HI, stream=False)
        assert answer.status_code == 200
    (running,) = httpx.get(f"{url}/api/ps").json()["models"]
    assert running["name"] == "tiny"
    shown = post(url, "show").json()
    assert shown["capabilities"] == ["completion", "tools"]
    assert shown["model_info"]["general.architecture"] in shown["details"]["families"]
    assert httpx.get(f"{url}/api/version").json()["version"]


@pytest.mark.parametrize(
    ("path", "fields", "status", "word"),
    [
        ("chat", {"messages": HI, "model": "other"}, 404, "other"),
        ("chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, 400, "images"),
        ("chat", {"messages": HI, "options": {"mirostat": 2}}, 400, "options.mirostat"),
        ("chat", {"messages": HI, "options": {"temperature": "hot"}}, 400, "options.temperature"),
        ("chat", {"messages": HI, "format": "xml"}, 400, "format"),
        ("chat", {"messages": HI, "think": "much"}, 400, "think"),
        ("generate", {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        ("generate", {"prompt": "a", "images": ["x"]}, 400, "images"),
        ("pull", {}, 501, "not managed"),
        ("embed", {"input": "a"}, 501, "not managed"),
    ],
)
def test_errors_have_ollamas_form(url, path, fields, status, word):
    found = post(url, path, **fields)
    assert found.status_code == status
    assert set(found.json()) == {"error"}
    assert word in found.json()["error"]


def test_a_page_of_another_origin_cannot_post_without_asking(url):
    """A browser sends such a body without a question; it is refused as not being JSON."""
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    body = json.dumps({"model": "tiny", "messages": HI})
    assert httpx.post(f"{url}/api/chat", content=body, headers=headers).status_code == 400
