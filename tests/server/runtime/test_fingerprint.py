"""`system_fingerprint`."""

from tests.cli.conftest import write_printable_checkpoint
from tests.server.asking import (
    ask,
)
from trimode import load
from trimode.server.runtime import fingerprint
from trimode.testing import tiny_model


def test_the_fingerprint_changes_with_weights_and_dtype(client, model, tmp_path):
    """`system_fingerprint`."""
    found = {chunk.system_fingerprint for chunk in ask(client, stream=True)}
    assert found == {ask(client).system_fingerprint} == {fingerprint(model)}
    path = write_printable_checkpoint(tmp_path / "m")
    loaded = [fingerprint(load(path, dtype=dtype)) for dtype in ("fp32", "int8", "fp32")]
    assert loaded[0] == loaded[2]
    assert len({fingerprint(tiny_model(seed=1)), *found, *loaded}) == 4
