"""`compare`, `models`, `env`, `--version`."""

import json

from trimode.cli.main import app
from trimode.cli.render import shaded
from trimode.decoding import Drafted
from trimode.testing import byte_tokenizer
from trimode.text import TextStream


def test_compare_says_that_speculation_equals_ar(cli, llama):
    outcome = cli("compare", llama, "hi", "--max-tokens", 12)
    assert outcome.code == 0
    rows = {line.split()[1]: line for line in outcome.out.splitlines() if line.startswith("│")}
    assert set(rows) == {"ar", "linear", "quadratic", "diffusion"}
    assert "yes" in rows["linear"]
    assert "yes" in rows["quadratic"]


def test_compare_says_that_an_unconverted_model_was_not_trained_for_it(cli, llama, nld):
    assert "never trained to fill masks" in cli("compare", llama, "hi", "--max-tokens", 4).out
    assert "never trained" not in cli("compare", nld, "hi", "--max-tokens", 4).out


def test_compare_prints_json(cli, llama):
    outcome = cli("compare", llama, "hi", "--modes", "ar,linear", "--max-tokens", 5, "--json")
    ar, linear = json.loads(outcome.out)["results"]
    assert ar["token_ids"] == linear["token_ids"]
    assert [ar["mode"], linear["mode"]] == ["ar", "linear"]


def test_compare_refuses_a_mode_named_twice(cli, llama):
    outcome = cli("compare", llama, "hi", "--modes", "ar,ar")
    assert outcome.code == 2
    assert "modes" in outcome.err


def test_models_lists_what_is_built_in_and_where_the_cache_is(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIMODE_CACHE", str(tmp_path))
    outcome = cli("models")
    assert outcome.code == 0
    assert "smollm2-135m-instruct" in outcome.out
    assert "not fetched yet" in outcome.out
    assert str(tmp_path) in outcome.out


def test_removing_an_unknown_model_is_refused(cli):
    outcome = cli("models", "rm", "nothing")
    assert outcome.code == 2
    assert "nothing" in outcome.err


def test_env_reports_versions_and_kernels(cli):
    facts = json.loads(cli("env", "--json").out)
    assert {"trimode", "torch", "python", "cpu", "fp32", "bf16", "cache"} <= set(facts)
    assert facts["torch"] in cli("env").out


def test_version_is_printed(cli):
    outcome = cli("--version")
    assert outcome.code == 0
    assert outcome.out.startswith("trimode ")


def test_every_command_and_option_has_a_help_text():
    import typer

    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_a_draft_shows_masks_as_dots_confidence_as_shade_and_revision_underlined():
    tokenizer = byte_tokenizer()
    mask = tokenizer.token_id("<|mask|>")
    tokens = (*tokenizer.encode("ab"), mask, *tokenizer.encode("c"))
    states = ("kept", "new", "mask", "revised")
    event = Drafted(start=5, tokens=tokens, confidences=(1.0, 0.1, 0.0, 0.99), states=states)
    text = shaded(event, 6, TextStream(tokenizer), mask)
    assert text.plain == "b·c"
    styles = [str(span.style) for span in text.spans]
    assert styles == ["grey35", "dim", "white underline"]
