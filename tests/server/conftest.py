"""A real server on a loopback port, with a tiny model."""

import contextlib

import openai
import pytest

from trimode.config import GenerationOptions
from trimode.server import HttpServer, ServerSettings, create_app
from trimode.testing import tiny_model
from trimode.testing.serving import in_thread


@contextlib.contextmanager
def serving(model, *, shutdown_timeout=0.0, **settings):
    """The address of a server that runs in a thread, and its state."""
    fields = {"name": "tiny", "defaults": GenerationOptions(temperature=1.0, max_tokens=24)}
    app = create_app(model, ServerSettings(**{**fields, **settings}))
    server = HttpServer(app, shutdown_timeout=shutdown_timeout)
    app.state.service.http_server = server  # for tests that stop it
    with in_thread(server) as url:
        yield url, app.state.service


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
