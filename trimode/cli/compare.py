"""`trimode compare`: the same prompt in every mode, side by side."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.engine import GenerationResult

_MODES = "ar,linear,quadratic,diffusion"


def compare(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL] PROMPT", help="`-` reads stdin.")
    ] = None,
    model: opt.Model = opt.DEFAULT_MODEL,
    modes: Annotated[str, typer.Option("--modes", help="Comma-separated.")] = _MODES,
    max_tokens: opt.MaxTokens = 64,
    temperature: opt.Temperature = 0.0,
    top_p: opt.TopP = 1.0,
    seed: opt.Seed = 0,
    block_length: opt.BlockLength = 8,
    threshold: opt.Threshold = None,
    system: opt.System = None,
    raw: opt.Raw = False,
    dtype: opt.Dtype = "auto",
    device: opt.Device = "auto",
    adapter: opt.Adapter = None,
    offline: opt.Offline = False,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Answer one prompt in every mode and print the figures side by side."""
    parameters = dict(locals())
    from trimode.config import GenerationOptions

    values = opt.generation_values(parameters)
    wanted = [mode.strip() for mode in modes.split(",")]
    all_options = [
        GenerationOptions.from_mapping({**values, "mode": mode, "force": True}) for mode in wanted
    ]
    if len(wanted) != len({options.mode for options in all_options}):
        raise InputError("modes", modes, "name each mode once")
    model, prompt = opt.model_and_prompt(model, words)
    loaded = opt.load_model(parameters, model)
    results = _run(loaded, opt.as_messages(prompt, system), all_options, parameters)
    if json_output:
        sys.stdout.write(json.dumps({"results": [r.to_json() for r in results]}) + "\n")
    else:
        _print(loaded, results)


def _run(
    model: "LoadedModel", prompt: Any, all_options: list[Any], parameters: dict[str, Any]
) -> list["GenerationResult"]:
    """One run a mode, after a short warm-up each so that the first is not at a disadvantage."""
    from dataclasses import replace

    from trimode.cli.render import spinner
    from trimode.engine import Engine, GenerationResult, drain, encode_prompt

    ids = encode_prompt(model, prompt, raw=parameters["raw"])
    results = []
    for options in all_options:
        with spinner(f"{options.mode}", enabled=not parameters["no_progress"]):
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
