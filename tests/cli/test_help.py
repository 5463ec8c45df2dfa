"""What `--help` says, and how a command's dataclasses become its options."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer

from trimode.cli.grouped import grouped
from trimode.cli.main import app
from trimode.config import DECODING_FIELDS


def parameters(command):
    """Parameters of a command by name."""
    return {parameter.name: parameter for parameter in command.params}


def test_every_command_and_option_has_a_help_text():
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), (name, parameter.name)


def test_the_list_of_commands_has_whole_lines(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = cli("--help").out.split("Commands:")[1]
    assert listed.count("\n") > 9
    assert "..." not in listed


def test_recipes_are_named_by_the_commands_that_take_them():
    for command, name in (("train", "config"), ("convert", "recipe")):
        help_text = parameters(typer.main.get_command(app).commands[command])[name].help
        assert "denoise, joint, nld_draft" in help_text


def test_the_defaults_named_for_the_built_in_model_are_its_own(real_cache):
    from trimode import load
    from trimode.config import ROLLING_THRESHOLD

    config = load().config
    assert f"the built-in one's: {config.block_length}" in DECODING_FIELDS["block_length"]
    assert config.draft_form == "led"  # so its diffusion blocks roll
    expected = f"{ROLLING_THRESHOLD} in a rolling block (the built-in model's)"
    assert expected in DECODING_FIELDS["threshold"]


@pytest.mark.parametrize("command", ["generate", "chat", "compare", "serve"])
def test_the_help_of_a_decoding_option_is_that_of_its_field(command):
    options = parameters(typer.main.get_command(app).commands[command])
    shared = options.keys() & DECODING_FIELDS.keys()
    assert {"block_length", "threshold"} <= shared
    for name in shared:
        assert options[name].help == DECODING_FIELDS[name]


def test_generate_offers_every_decoding_option():
    assert parameters(typer.main.get_command(app).commands["generate"]).keys() > set(
        DECODING_FIELDS
    )


@dataclass(frozen=True, kw_only=True)
class Base:
    size: Annotated[int, typer.Option("--size", "-s", help="How large.")] = 1
    colour: Annotated[str | None, typer.Option("--colour", help="Which.")] = None


@dataclass(frozen=True, kw_only=True)
class Large(Base):
    size: Annotated[int, typer.Option("--size", "-s", help="How large.")] = 100


def run(command, *arguments):
    program = typer.Typer()
    program.command()(command)
    return typer.main.get_command(program).main(list(arguments), standalone_mode=False)


def test_a_command_is_handed_its_dataclasses_built_of_its_options():
    @grouped
    def command(*, word: str, shape: Large, loud: bool = False):
        return word, shape, loud

    assert run(command, "a") == ("a", Large(), False)
    assert run(command, "a", "-s", "3", "--colour", "red", "--loud") == (
        "a",
        Large(size=3, colour="red"),
        True,
    )


def test_a_command_is_still_a_function_whose_options_have_defaults():
    @grouped
    def command(word: str = "a", *, shape: Large):
        return word, shape

    assert command() == ("a", Large())
    assert command("b", size=3) == ("b", Large(size=3))
    with pytest.raises(TypeError, match="weight"):
        command(weight=3)


def test_an_option_of_two_dataclasses_is_an_error():
    def command(*, one: Base, two: Large):
        return one, two

    with pytest.raises(ValueError, match="size"):
        grouped(command)
