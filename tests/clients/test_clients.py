"""The examples in `examples/clients` and the docs, as printed; and requests made of the schema."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
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


def narrowed(schema):
    """The published schema without what is refused at once, so that requests get to the model."""
    parts = schema["components"]["schemas"]
    role = {"enum": ["system", "developer", "user", "assistant"]}
    fields = {"role": role, "content": {"type": "string"}}
    message = {"type": "object", "properties": fields, "required": ["role", "content"]}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    decoding = parts["DecodingFields"]["properties"]
    for name in decoding.keys() - {"show_drafts"}:
        del decoding[name]
    decoding |= {
        "mode": {"enum": ["ar", "linear", "quadratic", "diffusion", "auto"]},
        "block_length": {"type": "integer", "minimum": 1, "maximum": 40},
        "threshold": share,
        "revision_threshold": share,
    }
    for kind in ("ChatBody", "CompletionBody"):
        fields = parts[kind]["properties"]
        fields |= {
            "model": {"const": "tiny"},
            "stream": {"const": True},
            "n": {"type": "integer", "minimum": 1, "maximum": 3},
            "stop": {"type": "array", "items": {"type": "string", "minLength": 1}},
            "top_k": {"type": "integer", "minimum": 0},
            "min_p": share,
            "repetition_penalty": {"type": "number", "minimum": 0.1, "maximum": 4},
            "logit_bias": {
                "type": "object",
                "propertyNames": {"pattern": "^[0-9]{1,2}$"},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
        }
    chat = parts["ChatBody"]["properties"]
    for name in ("tools", "tool_choice", "prediction", "response_format"):
        del chat[name]
    chat["messages"] = {"type": "array", "minItems": 1, "maxItems": 3, "items": message}
    return schema


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
    reasons = {reason for reason, _ in counts}
    assert "error" not in reasons, "a stream that fails has said 200 already"
    assert not narrow or {"length", "stop"} & reasons
