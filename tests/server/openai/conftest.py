"""A model whose answers are letters."""

import pytest

from tests.cli.conftest import write_printable_checkpoint
from tests.server.asking import client_of
from tests.server.conftest import serving
from trimode import load


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """Greedy answers of letters, without an end."""
    return load(write_printable_checkpoint(tmp_path_factory.mktemp("model") / "m"), dtype="fp32")


@pytest.fixture(scope="module")
def plain(letters):
    """A client of a server with that model."""
    with serving(letters) as (url, _):
        yield client_of(url)
