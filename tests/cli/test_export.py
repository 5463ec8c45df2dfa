"""`trimode export` as a user runs it."""

import json
import time

import pytest

from tests.cli.conftest import assert_one_line_error
from tests.conftest import either_signal
from trimode.testing.tiny import write_tiny_checkpoint


def test_the_directory_is_printed_and_its_ar_is_the_models(cli, nld, tmp_path):
    outcome = cli("export", nld, tmp_path / "ar", "--as", "ar")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{tmp_path / 'ar'}\n", "")
    assert json.loads((tmp_path / "ar/config.json").read_text())["model_type"] == "ministral3"
    asked = ("The sea", "--max-tokens", 4, "--json", "--dtype", "fp32")
    ours, theirs = (cli("generate", model, *asked).json() for model in (nld, tmp_path / "ar"))
    assert ours["token_ids"] == theirs["token_ids"]


@pytest.mark.parametrize(
    ("form", "words"),
    [("nld", ("model: was not trained to denoise",)), ("awq", ("--as: 'awq'", "ar, nld"))],
)
def test_what_cannot_be_is_one_line(cli, llama, tmp_path, form, words):
    outcome = cli("export", llama, tmp_path / "out", "--as", form)
    assert_one_line_error(outcome, 2, *words)
    assert not list(tmp_path.iterdir())


@either_signal
def test_an_interrupted_export_says_how_it_goes_on(cli, start, tmp_path, number, code):
    source = write_tiny_checkpoint(
        tmp_path / "m", "llama", hidden_size=1024, intermediate_size=4096, num_layers=12
    )
    arguments = ("export", source, tmp_path / "ar", "--as", "ar", "--dtype", "bf16")
    process = start(*arguments)
    while not list((tmp_path / ".ar.partial").glob("*.part")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.0005)
    while process.poll() is None:
        process.send_signal(number)
        time.sleep(0.001)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert errors.endswith(b"stopped; the same command continues\n")
    assert not (tmp_path / "ar").exists()
    assert cli(*arguments).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"m", "ar"}
