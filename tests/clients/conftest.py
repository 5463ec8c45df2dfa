"""Servers for clients: the built-in model, and models that say what a client should get."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.clients.catalogue import MODEL
from tests.server.conftest import serving
from trimode import load
from trimode.config import GenerationOptions
from trimode.testing import saying_model

INSTALLED = os.environ.get("TRIMODE_TEST_CLIENTS", "")
"""Where `make clients` has installed the clients."""


def call(name, /, **arguments):
    """A call as models with Hermes' tags write it."""
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


ANSWER = "It is sunny in Paris."
PET = {"name": "Ada", "kind": "cat", "homes": [{"city": "Paris", "rooms": 3}]}
TYPED_CALLS = ("Pet", "PartialPet", "final_result", "return_pet")
"""Names of the tools by which clients ask for a typed answer."""
SAYINGS = {
    "caller": (call("weather", city="Paris"), ANSWER),
    "kernel": (call("here-weather", city="Paris"), ANSWER),
    "typed": (json.dumps(PET),),
    "dspy": (json.dumps({"pet": PET}),),
    **{name: (call(name, **PET),) for name in TYPED_CALLS},
}
LONG_SAYINGS = {
    "agent": (call("weather", city="Paris"), call("final_answer", answer="sunny")),
    "coder": (call("exec_command", cmd="echo made > made.txt"), "It is done."),
    "teller": ("It is done.",),
    "editor": ("a.py\n```\nprint(2)\n```\n",),
}
"""What models say to programs with long prompts."""
SHORT, LONG, LONGEST = 2048, 4096, 14000
"""Contexts of models: a clients' schema of 1,500 characters fits the first one, whose tokens are
bytes; agents' and programs' prompts fit the others, in tokens of the built-in model."""


@pytest.fixture(scope="session")
def built_in(real_cache):
    return load()


@pytest.fixture(scope="session")
def urls(built_in):
    """Addresses of servers by what their models say; `real` is the built-in model."""
    models = {name: saying_model(*texts, context=SHORT) for name, texts in SAYINGS.items()}
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(_serving(model)) for name, model in models.items()}
        started["real"] = stack.enter_context(_serving(built_in))
        started["agent"] = stack.enter_context(_long(built_in, "agent"))
        yield started


@pytest.fixture
def long_url(built_in):
    """Starts a server whose model has a long context; takes the name of what it says."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(_long(built_in, name, LONGEST))


@contextlib.contextmanager
def _serving(model):
    defaults = GenerationOptions(max_tokens=400)
    with serving(model, name=MODEL, defaults=defaults) as (url, _):
        yield url


def _long(built_in, name, context=LONG):
    texts = LONG_SAYINGS[name]
    return _serving(saying_model(*texts, tokenizer=built_in.tokenizer, context=context))


@pytest.fixture
def run(tmp_path):
    """Runs a program in an empty home, which reports to nobody; gives its output."""
    quiet = {
        "AGNO_TELEMETRY": "false",
        "CREWAI_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OTEL_SDK_DISABLED": "true",
    }
    keys = {"OPENAI_API_KEY": "none", "ANTHROPIC_API_KEY": "none"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(command, *, cwd=None, timeout=300, **environment):
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env={**kept, **quiet, **keys, "HOME": str(tmp_path), **environment},
        )
        assert done.returncode == 0, (done.stdout[-1000:], done.stderr[-3000:])
        return done.stdout

    return run


def installed(group, program):
    """A program of an environment of `make clients`, or the reason to skip."""
    folder = "node_modules/.bin" if group == "npm" else "bin"
    path = Path(INSTALLED) / group / folder / program
    if not INSTALLED or not path.exists():
        pytest.skip(f"needs {program} of {group}: make clients")
    return path
