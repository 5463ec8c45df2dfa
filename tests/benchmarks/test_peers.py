"""Each engine that the comparison starts answers; run by `make peers-test`."""

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest

from benchmarks.lib.peers import PEERS, modes_of, start

pytestmark = [pytest.mark.peers, pytest.mark.real]

PACKAGES = {"llama": "xllamacpp", "transformers": "transformers", "trimode": "trimode"}
ENGINES = ["trimode-int8", *PEERS]
PROCESSES = sorted({(name, mode.server) for name in ENGINES for mode in modes_of(name)})
"""Engines by name and by the arguments that each of their processes is started with."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("peers")


@pytest.mark.parametrize(
    ("name", "server"), PROCESSES, ids=["-".join((name, *server)) for name, server in PROCESSES]
)
def test_an_engine_answers_in_each_mode_more_than_once(name, server, folder, real_cache):
    """More than once: a server may close a connection that it promised to keep open."""
    package = PACKAGES[name.split("-")[0]]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    engine = start(name, 2, folder, server=server)
    try:
        for mode in [mode for mode in modes_of(name) if mode.server == server]:
            for prompt in ("Say hello.", "Count to ten."):
                tokens, times = engine.ask(prompt, 8, mode.request)
                assert 1 <= tokens <= 8, mode
                assert times == sorted(times), mode
                assert times[0] > 0, mode
    finally:
        engine.close()


@pytest.mark.parametrize("name", ["transformers-fp32"])
def test_transformers_answers_a_batch_as_it_answers_one_by_one(name, folder, real_cache):
    prompts = ["Say hello.", "Count to ten in words, please.", "Name a colour."]
    found = []
    for slots in (1, 3):
        engine = start(name, slots, folder)
        try:
            with ThreadPoolExecutor(slots) as pool:
                asked = [pool.submit(engine.ask, prompt, 40, {}) for prompt in prompts]
                found.append([one.result()[0] for one in asked])
        finally:
            engine.close()
    assert found[0] == found[1]
