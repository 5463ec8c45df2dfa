"""Properties, the schema, the default mode."""

import json

import httpx2 as httpx
import openai

from tests.server.asking import (
    ask,
    get,
)
from tests.server.conftest import serving


def test_facts(url):
    assert json.loads(get(f"{url}/props"))["modes"][0] == "ar"
    assert "/v1/chat/completions" in json.loads(get(f"{url}/openapi.json"))["paths"]


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
