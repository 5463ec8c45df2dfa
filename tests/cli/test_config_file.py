"""`trimode serve --config`: options from a file, each error by file and field."""

import pytest

from tests.cli.conftest import assert_one_line_error
from trimode.errors import InputError


class Started(Exception):
    """The server would start now."""


@pytest.fixture
def serve(cli, monkeypatch, tmp_path):
    """Run `trimode serve --config` up to where the model is loaded; returns what it would do."""
    seen = {}

    def open_service(settings, load, *, measure):
        seen["settings"] = settings
        load()

    def load_model(options, *, progress, asked):
        seen["model"] = options
        raise InputError("stop", "here", "the rest is the server's")

    monkeypatch.setattr("trimode.server.open_service", open_service)
    monkeypatch.setattr("trimode.cli.options.load_model", load_model)

    def run(text, *more):
        path = tmp_path / "trimode.yaml"
        path.write_text(text)
        outcome = cli("serve", "--config", path, "--port", 0, "--no-progress", *more)
        return outcome, seen

    return run


CONFIG = """# why
model: some/model
adapter: [one, two]
mode: linear
block-length: 6
max_tokens: 77
temperature: 1
max-sequences: 32
"""


def test_the_file_sets_options_by_their_long_names(serve):
    _, seen = serve(CONFIG)
    defaults = seen["settings"].defaults
    assert (seen["model"].model, list(seen["model"].adapter)) == ("some/model", ["one", "two"])
    assert (defaults.mode, defaults.block_length, defaults.max_tokens) == ("linear", 6, 77)
    assert defaults.temperature == 1.0
    assert seen["settings"].max_sequences == 32


def test_the_command_line_wins(serve):
    _, seen = serve(CONFIG, "--mode", "auto", "--block-length", 3, "-m", "other")
    assert (seen["settings"].defaults.mode, seen["model"].model) == ("auto", "other")


def test_the_environment_wins(serve, monkeypatch):
    monkeypatch.setenv("TRIMODE_MAX_TOKENS", "5")
    _, seen = serve(CONFIG)
    assert seen["settings"].defaults.max_tokens == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mod: linear", "trimode.yaml: mod: no such option; did you mean mode?"),
        ("colour: red", "trimode.yaml: colour: no such option; known: "),
        ("port: many", "trimode.yaml: port: 'many'; must be a whole number"),
        ("port: true", "trimode.yaml: port: True; must be a whole number"),
        ("block-length: [1, 2]", "trimode.yaml: block-length: [1, 2]; must be one value"),
        ("mode:", "trimode.yaml: mode: None; must be one value"),
        ("max-tokens: 1\nmax_tokens: 2", "trimode.yaml: max_tokens: given twice"),
        ("- mode", "trimode.yaml: list; must map options to values"),
        ("", "trimode.yaml: empty; must map options to values"),
        ("mode: [", "trimode.yaml: not YAML"),
        ("mode: slow", "mode: 'slow'; allowed: ar"),
        ("no-progress: 3", "trimode.yaml: no-progress: 3; must be true or false"),
        ("mode: [linear]", "trimode.yaml: mode: ['linear']; must be one value"),
        ("adapter: [3, {}]", "trimode.yaml: adapter: {}; must be a text"),
        ("port: 70000", "trimode.yaml: port: 70000; must be at least 0 and at most 65535"),
        ("config: a.yaml", "trimode.yaml: config: no such option"),
    ],
)
def test_an_error_names_file_and_field(serve, text, words):
    outcome, _ = serve(text)
    assert_one_line_error(outcome, 2, words)


def test_a_file_that_is_not_there_is_named(cli):
    assert_one_line_error(cli("serve", "--config", "/nowhere.yaml"), 2, "config: /nowhere.yaml")
