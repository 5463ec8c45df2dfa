"""Properties, the schema, the default mode."""

import json

import httpx2 as httpx
import openai

from tests.server.asking import (
    HI,
    ask,
    get,
)
from tests.server.conftest import serving
from trimode import generate
from trimode.config import MODES, GenerationOptions
from trimode.decoding import MODE_SPECS, CostCurve
from trimode.testing import tiny_model

BLOCKS = ("linear", "quadratic", "diffusion")


def test_the_schema_is_served(url):
    schema = json.loads(get(f"{url}/openapi.json"))
    assert "/v1/chat/completions" in schema["paths"]
    assert [name for name in schema["components"]["schemas"] if "__" in name] == []


def props(url):
    return json.loads(get(f"{url}/props"))


def test_props_say_what_each_mode_reads_and_what_applies(url, model):
    found = props(url)
    assert list(found["modes"]) == list(MODES)
    assert (found["model"], found["temperature"], found["max_tokens"]) == ("tiny", 1.0, 24)
    for mode, facts in found["modes"].items():
        spec = MODE_SPECS[mode]
        assert facts["summary"] == spec.summary
        assert facts["lossless"] == spec.lossless
        assert facts["reads"] == sorted(spec.reads)
        assert facts["unavailable"] is None
        length = {"block_length": model.config.block_length} if "block_length" in spec.reads else {}
        applied = generate(model, "a", mode=mode, max_tokens=1, **length).settings
        known = {name: value for name, value in applied.items() if name in spec.reads}
        assert facts["defaults"] == known


def test_props_say_which_block_pays_on_a_measured_machine(model):
    steep = CostCurve((1, 128), (1.0, 128.0), (1.0, 128.0))
    flat = CostCurve((1, 128), (1.0, 1.01), (1.0, 1.01))
    found = {}
    for name, costs in (("steep", steep), ("flat", flat)):
        with serving(model, measure=lambda _, costs=costs: costs) as (url, _):
            modes = props(url)["modes"]
            found[name] = {mode: modes[mode]["defaults"]["block_length"] for mode in BLOCKS}
            body = {"model": "tiny", "messages": HI, "decoding": {"mode": "linear"}}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        assert answer["metrics"]["decoding"]["block_length"] == found[name]["linear"]
    whole = model.config.block_length
    assert found["steep"] == {"linear": 2, "quadratic": 2, "diffusion": whole}
    assert found["flat"]["diffusion"] == whole
    assert found["flat"]["linear"] > 2


def test_props_follow_the_defaults_of_the_server(model):
    defaults = GenerationOptions(
        mode="diffusion", commit_rule="margin", threshold=0.25, block_length=5
    )
    with serving(model, defaults=defaults) as (url, _):
        modes = props(url)["modes"]
    expected = {"block_length": 5, "commit_rule": "margin", "threshold": 0.25}
    for mode in ("diffusion", "linear"):
        assert modes[mode]["defaults"].items() >= expected.items()
    assert modes["quadratic"]["defaults"] == {"block_length": 5}
    assert modes["ar"]["defaults"] == {}


def test_props_name_the_modes_that_a_model_cannot_run():
    with serving(tiny_model(mask_token_id=None)) as (url, _):
        modes = props(url)["modes"]
    assert [mode for mode, facts in modes.items() if facts["unavailable"] is None] == ["ar", "auto"]
    assert "mask token" in modes["linear"]["unavailable"]


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
