"""What every test shares: one thread, fixed seeds, a cache directory of its own."""

import os
import signal

import pytest
import torch
from hypothesis import settings

settings.register_profile("trimode", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("trimode")

either_signal = pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
"""A signal that interrupts a command, and the exit code it leaves."""


@pytest.fixture(scope="session", autouse=True)
def _isolated_cache(tmp_path_factory):
    """Point TRIMODE_CACHE at an empty directory, or at TRIMODE_TEST_CACHE where that is set."""
    patch = pytest.MonkeyPatch()
    real = os.environ.get("TRIMODE_TEST_CACHE")
    patch.setenv("TRIMODE_CACHE", real or str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def real_cache():
    """The directory with the real model; tests that need it are skipped where there is none."""
    path = os.environ.get("TRIMODE_TEST_CACHE")
    if not path:
        pytest.skip("TRIMODE_TEST_CACHE is not set")
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
