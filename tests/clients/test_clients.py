"""Other people's clients against a real server; run by `make clients`."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.conftest import write_printable_checkpoint
from tests.server.conftest import serving
from trimode import generate, load

pytestmark = pytest.mark.clients
EXAMPLES = Path(__file__).parents[2] / "examples" / "clients"
NODE_MODULES = os.environ.get("TRIMODE_NODE_MODULES", "")


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


def run(command, **environment):
    done = subprocess.run(
        list(map(str, command)),
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


@pytest.mark.skipif(not NODE_MODULES, reason="needs npm's openai: make clients")
def test_npm(url, expected, tmp_path):
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    script = shutil.copy(EXAMPLES / "chat.mjs", tmp_path)
    assert run(["node", script, f"{url}/v1", "tiny", "hi"]) == expected


@pytest.mark.skipif(find_spec("llm") is None, reason="needs llm")
def test_llm(url, expected, tmp_path):
    source = (EXAMPLES / "llm-models.yaml").read_text()
    source = source.replace("http://127.0.0.1:8000", url).replace("smollm2-135m-instruct", "tiny")
    (tmp_path / "extra-openai-models.yaml").write_text(source)
    command = [sys.executable, "-m", "llm", "-m", "trimode", "--key", "none", "hi"]
    options = ["-o", "temperature", "0", "-o", "max_tokens", "24", "--no-log"]
    found = run([*command, *options], LLM_USER_PATH=str(tmp_path))
    assert found.rstrip("\n") == expected.rstrip("\n")


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="needs schemathesis")
def test_no_request_within_the_schema_gives_a_500(url):
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{url}/openapi.json",
               "--checks", "not_a_server_error", "--max-examples", "25", "--seed", "1",
               "--phases", "examples,fuzzing", "--request-timeout", "60"]  # fmt: skip
    run(command)
