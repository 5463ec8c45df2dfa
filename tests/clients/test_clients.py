"""The examples in `examples/clients` and the docs, as printed; and requests made of the schema."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.conftest import write_printable_checkpoint
from tests.clients.conftest import INSTALLED
from tests.server.conftest import serving
from trimode import generate, load

pytestmark = pytest.mark.clients
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "clients"
NODE_MODULES = Path(INSTALLED) / "npm" / "node_modules"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_printable_checkpoint(tmp_path_factory.mktemp("model") / "m"), dtype="fp32")


@pytest.fixture(scope="module")
def url(model):
    with serving(model) as (address, _):
        yield address


@pytest.fixture(scope="module")
def expected(model):
    messages = [{"role": "user", "content": "hi"}]
    return generate(model, messages, max_tokens=24).text


def run(command, cwd=None, **environment):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(url, expected):
    answer = json.loads(run(["sh", EXAMPLES / "curl.sh", f"{url}/v1", "tiny", "hi"]))
    assert answer["choices"][0]["message"]["content"] == expected


@pytest.mark.skipif(find_spec("langchain_openai") is None, reason="needs langchain-openai")
def test_langchain(url, expected):
    script = EXAMPLES / "langchain_chat.py"
    assert run([sys.executable, script, f"{url}/v1", "tiny", "hi"]) == expected


@pytest.mark.skipif(not INSTALLED, reason="needs npm's openai: make clients")
def test_npm(url, expected, tmp_path):
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    script = shutil.copy(EXAMPLES / "chat.mjs", tmp_path)
    assert run(["node", script, f"{url}/v1", "tiny", "hi"]) == expected


@pytest.mark.skipif(find_spec("llm") is None, reason="needs llm")
def test_llm(url, expected, tmp_path):
    source = (EXAMPLES / "llm-models.yaml").read_text()
    source = source.replace("http://127.0.0.1:8000", url).replace("smollm2-135m-instruct", "tiny")
    (tmp_path / "extra-openai-models.yaml").write_text(source)
    llm, user = [sys.executable, "-m", "llm"], {"LLM_USER_PATH": str(tmp_path)}
    run([*llm, "keys", "set", "trimode", "--value", "none"], **user)
    options = ["-o", "temperature", "0", "-o", "max_tokens", "24", "--no-log"]
    found = run([*llm, "-m", "trimode", "hi", *options], **user)
    assert found.rstrip("\n") == expected.rstrip("\n")


@pytest.mark.parametrize(
    ("language", "command"),
    [("python", [sys.executable, "-c"]), ("js", ["node", "--input-type=module", "-e"])],
)
def test_the_examples_that_show_drafts(model, language, command):
    """docs/streaming.md, as printed but for the port."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    page = (ROOT / "docs" / "streaming.md").read_text()
    (code,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    (name,) = re.findall(r"model[=:] ?[\"']([\w-]+)", code)
    with serving(model, name=name) as (url, _):
        lines = run([*command, code.replace("http://127.0.0.1:8000", url)]).splitlines()
    mode = re.search(r"mode\W+(\w+)", code)[1]
    messages = [{"role": "user", "content": "Name three colours."}]
    assert lines[-1] == generate(model, messages, mode=mode, max_tokens=64).text
    assert len(lines) > 1, "it showed drafts"


_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_TEXT = {"type": "string", "minLength": 1}
_FEW = {"type": "integer", "minimum": 1, "maximum": 40}
_STOP = {"type": "array", "maxItems": 4, "items": _TEXT}


def _closed(properties, *required):
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": _closed(
        {"role": {"enum": ["user", "assistant"]}, "content": _TEXT}, "role", "content"
    ),
}
_EVERYWHERE = {
    "model": {"const": "tiny"},
    "stream": {"type": "boolean"},
    "temperature": _SHARE,
    "top_p": _SHARE,
    "decoding": {
        "anyOf": [
            _closed({"mode": {"enum": ["ar", "auto"]}}),
            _closed({"mode": {"enum": ["linear", "quadratic"]}, "block_length": _FEW}, "mode"),
            _closed(
                {"mode": {"const": "diffusion"}, "block_length": _FEW, "threshold": _SHARE}, "mode"
            ),
        ]
    },
}
_OPENAI = {
    **_EVERYWHERE,
    "n": {"type": "integer", "minimum": 1, "maximum": 3},
    "stop": _STOP,
    "top_k": {"type": "integer", "minimum": 0, "maximum": 300},
    "min_p": _SHARE,
    "repetition_penalty": {"type": "number", "minimum": 0.1, "maximum": 4},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
    "seed": {"type": "integer"},
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,2}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    },
}
_OLLAMA = {
    **_EVERYWHERE,
    "options": _closed({"num_predict": _FEW, "top_k": _FEW, "stop": _STOP, "seed": _FEW}),
}
REACHING = {
    "/v1/chat/completions": _closed(
        {**_OPENAI, "messages": _MESSAGES, "max_completion_tokens": _FEW}, "messages",
    ),
    "/v1/completions": _closed(
        {**_OPENAI, "prompt": _TEXT, "max_tokens": _FEW, "echo": {"type": "boolean"}},
        "prompt",
    ),
    "/v1/responses": _closed(
        {**_EVERYWHERE, "input": _TEXT, "instructions": _TEXT, "max_output_tokens": _FEW},
        "input",
    ),
    "/v1/messages": _closed(
        {**_EVERYWHERE, "messages": _MESSAGES, "max_tokens": _FEW, "stop_sequences": _STOP},
        "model", "messages", "max_tokens",
    ),
    "/api/chat": _closed({**_OLLAMA, "messages": _MESSAGES}, "model", "messages"),
    "/api/generate": _closed(
        {**_OLLAMA, "prompt": _TEXT, "system": _TEXT, "raw": {"type": "boolean"}},
        "model", "prompt",
    ),
}  # fmt: skip
"""Bodies by path, of which nearly all get to the model."""


def narrowed(schema):
    """The published schema with the paths that decode, and bodies that get to the model."""
    paths = {path: {"post": schema["paths"][path]["post"]} for path in REACHING}
    for path, body in REACHING.items():
        published = paths[path]["post"]["requestBody"]["content"]["application/json"]
        part = published["schema"]["$ref"].rpartition("/")[2]
        known = schema["components"]["schemas"][part]["properties"]
        assert not body["properties"].keys() - known.keys(), "fields that nobody publishes"
        published["schema"] = body
    return {**schema, "paths": paths}


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis")
@pytest.mark.parametrize("narrow", [False, True], ids=["any", "narrowed"])
def test_no_request_within_the_schema_gives_a_500(model, tmp_path, narrow):
    with serving(model) as (url, service):
        with urllib.request.urlopen(f"{url}/openapi.json") as answer:
            schema = json.load(answer)
        path = tmp_path / "schema.json"
        path.write_text(json.dumps(narrowed(schema) if narrow else schema))
        command = [Path(sys.executable).with_name("schemathesis"), "run", path, "--url", url,
                   "--checks", "not_a_server_error", "--max-examples", "25", "--seed", "1",
                   "--phases", "examples,fuzzing", "--request-timeout", "60"]  # fmt: skip
        run(command, cwd=tmp_path)  # it leaves a cache behind
        counts = re.findall(
            r'requests_total{finish_reason="(\w+)".* (\d+)', service.metrics.text().decode()
        )
    decoded = Counter()
    for reason, count in counts:
        decoded[reason] += int(count)
    assert not decoded["error"], "a stream that fails has said 200 already"
    if narrow:
        assert decoded["length"] + decoded["stop"] > 10 * len(REACHING), decoded
