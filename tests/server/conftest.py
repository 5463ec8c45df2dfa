"""A real server on a loopback port, with a tiny model."""

import contextlib

import openai
import pytest

from trimode.config import GenerationOptions
from trimode.server import ServerSettings, open_service
from trimode.testing import tiny_model
from trimode.testing.serving import running


@contextlib.contextmanager
def serving(model, *, measure=None, **settings):
    """The address of a server that runs in a thread, and its service; see `open_service`."""
    fields = {
        "name": "tiny",
        "defaults": GenerationOptions(temperature=1.0, max_tokens=24),
        "shutdown_timeout": 0.0,
    }
    asked = ServerSettings(**{**fields, **settings})
    service = open_service(asked, lambda: model, measure=measure)
    with running(service) as server:
        service.http_server = server  # for tests that stop it
        yield server.url, service


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def served(model):
    with serving(model) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    return openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def url(served):
    return served[0]
