"""The engine's thread: a full queue, a failed pass, neighbours."""

import concurrent.futures

import openai
import pytest

from tests.server.asking import (
    LONG,
    client_of,
    decoding,
    get,
    until,
)
from tests.server.conftest import serving
from trimode import generate


def test_a_full_queue_says_when_to_come_back(model):
    with serving(model, max_sequences=1, max_waiting=0, defaults=LONG) as (url, server):
        client = client_of(url)
        first = client.completions.create(model="tiny", prompt="a", stream=True)
        next(iter(first))
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt="b")
        assert caught.value.response.headers["retry-after"] == "1"
        assert set(caught.value.body) == {"message", "type", "param", "code"}
        first.close()
        until(lambda: not server.worker.engine.busy)
        assert client.completions.create(model="tiny", prompt="b", max_tokens=2).choices


def test_a_failed_pass_ends_its_requests_and_not_the_server(model, monkeypatch):
    with serving(model) as (url, server):
        client = client_of(url)
        with monkeypatch.context() as patch:

            def broken(*_):
                raise RuntimeError("out of memory")

            patch.setattr("trimode.engine.engine.run", broken)
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(model="tiny", prompt="a")
            assert set(caught.value.body) == {"message", "type", "param", "code"}
            with pytest.raises(openai.APIError, match="the model failed"):
                list(client.completions.create(model="tiny", prompt="a", stream=True))
        assert not server.worker.engine.busy
        assert 'finish_reason="error"' in get(f"{url}/metrics")
        assert client.completions.create(model="tiny", prompt="a").choices


def test_every_neighbour_gets_its_own_text(url, model):
    client = client_of(url)
    modes = ["ar", "linear", "quadratic", "diffusion"]

    def ask(i):
        fields = decoding(modes[i % 4])
        asked = {"extra_body": {"decoding": fields}, "seed": i, "temperature": i % 3 / 2}
        found = client.completions.create(
            model="tiny", prompt=f"prompt {i}", max_tokens=20, **asked
        )
        alone = generate(
            model, f"prompt {i}", raw=True, seed=i, temperature=i % 3 / 2, max_tokens=20, **fields
        )
        return found.choices[0].text, alone.text

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for served, alone in pool.map(ask, range(36)):
            assert served == alone
