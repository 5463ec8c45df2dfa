"""`trimode compare`: the same prompt in every mode, side by side."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.config import GenerationOptions
    from trimode.engine import GenerationResult

_MODES = "ar,linear,quadratic,diffusion,auto"


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
    """Answer one prompt in every mode, side by side."""
    all_options = _for_modes(modes, decoding)
    name, prompt = opt.model_and_prompt(model.model, words)
    # By default a mode that the model cannot run is left out; one that was asked for is refused.
    asked = () if modes == _MODES else all_options
    loaded = opt.load_model(model.named(name), progress=not no_progress, asked=asked)
    all_options = _possible(loaded, all_options)
    messages = opt.as_messages(prompt, system)
    results = _run(loaded, messages, all_options, raw=raw, progress=not no_progress)
    if json_output:
        sys.stdout.write(json.dumps({"results": [r.to_json() for r in results]}) + "\n")
    else:
        _print(loaded, results, decoding.block_length or loaded.config.block_length)


def _possible(
    model: "LoadedModel", all_options: list["GenerationOptions"]
) -> list["GenerationOptions"]:
    """The modes that the model can run; says which are left out."""
    from trimode.cli.render import note
    from trimode.decoding import MODE_SPECS

    has_mask = model.config.mask_token_id is not None
    found = [each for each in all_options if has_mask or not MODE_SPECS[each.mode].needs_mask]
    if len(found) < len(all_options):
        left_out = ", ".join(each.mode for each in all_options if each not in found)
        note(f"{model.name} has no mask token: no {left_out}; `trimode convert` adds them")
    return found


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
) -> Iterator["GenerationResult"]:
    """One run a mode, after a short warm-up each so that the first is not at a disadvantage."""
    from trimode.cli.render import spinner
    from trimode.engine import Engine, GenerationResult, drain, encode_prompt

    ids = encode_prompt(model, prompt, raw=raw)
    for options in all_options:
        with spinner(f"{options.mode}", enabled=progress):
            for asked in (replace(options, max_tokens=2), options):
                engine = Engine(model, max_sequences=1)
                sequence = engine.add(ids, asked)
                for _ in drain(engine):
                    pass
        yield GenerationResult.of(sequence, model.name)


_COLUMNS = {
    "mode": 9,
    "tokens": 6,
    "NFE": 5,
    "TPF": 5,
    "acceptance": 10,
    "tok/s": 7,
    "TTFT ms": 7,
}
"""Columns of the table and their widths; rows are printed before later ones are known."""


def _print(model: "LoadedModel", results: Iterator["GenerationResult"], block_length: int) -> None:
    """Print a table, each row when its mode is done, and every text that differs."""
    first = next(results)
    _say(f"{first.mode}: {first.text}")
    widths = {**_COLUMNS, f"same as {first.mode}": 19}
    _say(_rule("┏━┳┓", widths))
    _say(_cells(list(widths), widths, "┃"))
    _say(_rule("┡━╇┩", widths))
    others = []
    for result in chain((first,), results):
        stats = result.stats
        acceptance = stats.acceptance_length
        same = _sameness(result, first)
        row = [
            result.mode,
            str(stats.completion_tokens),
            str(stats.nfe),
            f"{stats.tokens_per_forward:.2f}",
            "" if acceptance is None else f"{acceptance:.2f}",
            f"{stats.tokens_per_second:.1f}",
            f"{(stats.time_to_first_token or 0) * 1e3:.0f}",
            same,
        ]
        _say(_cells(row, widths, "│"))
        if same.startswith("no"):
            others.append(result)
    _say(_rule("└─┴┘", widths))
    _say(f"block length {block_length}, in the modes that have blocks (--block-length)")
    for result in others:
        _say(f"{result.mode}: {result.text}")
    if not model.can_draft:
        _say(
            f"{model.name} is an unconverted AR checkpoint: it was never trained to fill masks. "
            "Its acceptance and its diffusion figures say nothing about the method; linear and "
            "quadratic emit AR's tokens all the same."
        )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _rule(ends: str, widths: dict[str, int]) -> str:
    """A line of the table's frame: its left end, filling, crossing and right end."""
    left, fill, crossing, right = ends
    return left + crossing.join(fill * (width + 2) for width in widths.values()) + right


def _cells(texts: list[str], widths: dict[str, int], bar: str) -> str:
    """A row: numbers to the right, words (the first and the last column) to the left."""
    last = len(texts) - 1
    cells = (
        f" {text.ljust(width) if i in (0, last) else text.rjust(width)} "
        for i, (text, width) in enumerate(zip(texts, widths.values(), strict=True))
    )
    return bar + bar.join(cells) + bar


def _sameness(result: "GenerationResult", reference: "GenerationResult") -> str:
    if result is reference:
        return ""
    pairs = zip(result.token_ids, reference.token_ids, strict=False)
    differs = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if differs is None and len(result.token_ids) == len(reference.token_ids):
        return "yes"
    shorter = min(len(result.token_ids), len(reference.token_ids))
    return f"no, from token {(shorter if differs is None else differs) + 1}"
