"""`trimode compare`: the same prompt in every mode, side by side."""

import json
import sys
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.config import GenerationOptions
    from trimode.engine import GenerationResult

_MODES = "ar,linear,quadratic,diffusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedOptions(opt.DecodingOptions):
    """Decoding options of all modes; each mode takes those that it reads."""

    max_tokens: opt.MaxTokens = 64
    block_length: opt.BlockLength = 8
    seed: opt.Seed = 0


@grouped
def compare(
    words: opt.Words = None,
    *,
    model: opt.ModelOptions,
    modes: Annotated[str, typer.Option("--modes", help="Comma-separated.")] = _MODES,
    decoding: ComparedOptions,
    system: opt.System = None,
    raw: opt.Raw = False,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Answer one prompt in every mode and print the figures side by side."""
    all_options = _for_modes(modes, decoding)
    name, prompt = opt.model_and_prompt(model.model, words)
    loaded = opt.load_model(model.named(name), progress=not no_progress)
    messages = opt.as_messages(prompt, system)
    results = _run(loaded, messages, all_options, raw=raw, progress=not no_progress)
    if json_output:
        sys.stdout.write(json.dumps({"results": [r.to_json() for r in results]}) + "\n")
    else:
        _print(loaded, results)


def _for_modes(modes: str, decoding: ComparedOptions) -> list["GenerationOptions"]:
    """The options of each mode.

    Raises:
        InputError: a mode is named twice, or no mode reads an option that was given.
    """
    names = [name.strip() for name in modes.split(",")]
    asked = [replace(decoding.for_mode(name), force=True) for name in names]
    if len(names) != len({options.mode for options in asked}):
        raise InputError("modes", modes, "name each mode once")
    from trimode.decoding import inherited

    found = [inherited(options, options.mode) for options in asked]
    for field in fields(decoding):
        given = getattr(decoding, field.name)
        if given != field.default and all(getattr(o, field.name) != given for o in found):
            raise InputError(field.name, str(given), f"not read by {modes}")
    return found


def _run(
    model: "LoadedModel",
    prompt: Any,
    all_options: list["GenerationOptions"],
    *,
    raw: bool,
    progress: bool,
) -> list["GenerationResult"]:
    """One run a mode, after a short warm-up each so that the first is not at a disadvantage."""
    from trimode.cli.render import spinner
    from trimode.engine import Engine, GenerationResult, drain, encode_prompt

    ids = encode_prompt(model, prompt, raw=raw)
    results = []
    for options in all_options:
        with spinner(f"{options.mode}", enabled=progress):
            for asked in (replace(options, max_tokens=2), options):
                engine = Engine(model, max_sequences=1)
                sequence = engine.add(ids, asked)
                for _ in drain(engine):
                    pass
        results.append(GenerationResult.of(sequence, model.name))
    return results


def _print(model: "LoadedModel", results: list["GenerationResult"]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{results[0].mode}: ", end="", style="bold")
    console.print(results[0].text, markup=False, highlight=False)
    table = Table()
    for column in ("mode", "tokens", "NFE", "TPF", "acceptance", "tok/s", "TTFT ms"):
        table.add_column(column, justify="left" if column == "mode" else "right")
    table.add_column(f"same as {results[0].mode}")
    for result in results:
        stats = result.stats
        acceptance = stats.acceptance_length
        table.add_row(
            result.mode,
            str(stats.completion_tokens),
            str(stats.nfe),
            f"{stats.tokens_per_forward:.2f}",
            "" if acceptance is None else f"{acceptance:.2f}",
            f"{stats.tokens_per_second:.1f}",
            f"{(stats.time_to_first_token or 0) * 1e3:.0f}",
            _sameness(result, results[0]),
        )
    console.print(table)
    if not model.can_draft:
        console.print(
            f"{model.name} is an unconverted AR checkpoint: it was never trained to fill masks. "
            "Its acceptance and its diffusion figures say nothing about the method; linear and "
            "quadratic emit AR's tokens all the same.",
            highlight=False,
        )


def _sameness(result: "GenerationResult", reference: "GenerationResult") -> str:
    if result is reference:
        return ""
    pairs = zip(result.token_ids, reference.token_ids, strict=False)
    differs = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if differs is None and len(result.token_ids) == len(reference.token_ids):
        return "yes"
    shorter = min(len(result.token_ids), len(reference.token_ids))
    return f"no, from token {(shorter if differs is None else differs) + 1}"
