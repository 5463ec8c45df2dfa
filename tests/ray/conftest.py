"""A Ray cluster of one node, in Ray's HAProxy mode; run by `make ray`."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.ray.cluster import Cluster

_TRIES = 3
"""Ray gives up a start on a busy machine after some seconds."""


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def cluster(real_cache):
    pytest.importorskip("ray")
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets need short paths
    found = Cluster(folder, real_cache)
    try:
        for left in reversed(range(_TRIES)):
            started = found.start()
            if started.returncode == 0:
                break
            assert left, started.stdout + started.stderr
            found.stop()
        yield found
    finally:
        found.stop()
        shutil.rmtree(folder, ignore_errors=True)
