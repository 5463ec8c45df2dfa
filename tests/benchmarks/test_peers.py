"""Each engine that the comparison starts answers; run by `make peers-test`."""

from importlib.util import find_spec

import pytest

from benchmarks.lib.peers import MODES, start

pytestmark = [pytest.mark.peers, pytest.mark.real]

PACKAGES = {"llama": "xllamacpp", "transformers": "transformers", "trimode": "trimode"}
PROCESSES = sorted({(name, mode.server) for name, modes in MODES.items() for mode in modes})
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
        for mode in [mode for mode in MODES[name] if mode.server == server]:
            for prompt in ("Say hello.", "Count to ten."):
                tokens, times = engine.ask(prompt, 8, mode.request)
                assert 1 <= tokens <= 8, mode
                assert times == sorted(times), mode
                assert times[0] > 0, mode
    finally:
        engine.close()
