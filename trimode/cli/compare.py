"""`trimode compare` and `trimode demo`: the same prompts in every mode, side by side."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.config import GenerationOptions
    from trimode.engine import EncodedPrompt, GenerationResult

_MODES = "ar,auto,linear,quadratic,diffusion"
_DEMO_PROMPTS = {
    "prose": "Write a short letter to a friend about a week at the sea.",
    "code": "Write a Python class for a bank account with deposit, withdraw and balance methods.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedOptions(opt.DecodingOptions):
    """Decoding options of all modes; each mode takes those that it reads."""

    max_tokens: opt.MaxTokens = 96
    seed: opt.Seed = 0


@grouped
def compare(
    words: opt.Words = None,
    *,
    model: opt.ModelOptions,
    modes: Annotated[str, typer.Option("--modes", help="Comma-separated.")] = _MODES,
    decoding: ComparedOptions,
    image: opt.Image = None,
    system: opt.System = None,
    raw: opt.Raw = False,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Answer one prompt in every mode, side by side."""
    all_options = _for_modes(modes, decoding)
    for path in image or ():
        opt.existing_file(path, "image")
    name, prompt = opt.model_and_prompt(model.model, words)
    # By default a mode that the model cannot run is left out; one that was asked for is refused.
    asked = () if modes == _MODES else all_options
    loaded = opt.load_model(model.named(name), progress=not no_progress, asked=asked)
    all_options = _possible(loaded, all_options)
    encoded = opt.PromptOptions(system=system, raw=raw).encoded(loaded, prompt, image or ())
    rows = _run(loaded, [encoded], all_options, progress=not no_progress)
    if json_output:
        found = [result.to_json() for results in rows for result in results]
        sys.stdout.write(json.dumps({"results": found}) + "\n")
    else:
        _print(loaded, rows, ())


@grouped
def demo(
    *, model: opt.ModelOptions, decoding: ComparedOptions, no_progress: opt.NoProgress = False
) -> None:
    """Answer two prompts in every mode, and say what pays here."""
    all_options = _for_modes(_MODES, decoding)
    loaded = opt.load_model(model, progress=not no_progress)
    all_options = _possible(loaded, all_options)
    encoded = [opt.PromptOptions().encoded(loaded, text) for text in _DEMO_PROMPTS.values()]
    rows = _run(loaded, encoded, all_options, progress=not no_progress)
    _print(loaded, rows, tuple(_DEMO_PROMPTS))


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
    prompts: Sequence["EncodedPrompt"],
    all_options: list["GenerationOptions"],
    *,
    progress: bool,
) -> Iterator[list["GenerationResult"]]:
    """The answers of each mode, after a short warm-up so that the first has no disadvantage."""
    from trimode.cli.render import spinner
    from trimode.engine import Engine, GenerationResult, drain

    for options in all_options:
        results = []
        with spinner(f"{options.mode}", enabled=progress):
            for prompt in prompts:
                for asked in (replace(options, max_tokens=2), options):
                    engine = Engine(model, max_sequences=1)
                    sequence = engine.add(prompt.tokens, asked, images=prompt.images)
                    for _ in drain(engine):
                        pass
                results.append(GenerationResult.of(sequence, model.name))
        yield results


_WIDTHS = {
    "mode": 9,
    "block": 5,
    "tokens": 6,
    "NFE": 5,
    "TPF": 5,
    "acceptance": 10,
    "tok/s": 7,
    "TTFT ms": 7,
}
"""Columns of the table and their widths; rows are printed before later ones are known."""


def _print(
    model: "LoadedModel",
    rows: Iterator[list["GenerationResult"]],
    prompts: Sequence[str],
) -> None:
    """Print a table, each row when its mode is done, every text that differs, and what pays."""
    from trimode.decoding import Stats

    first = next(rows)
    for result in first:
        _say(f"{result.mode}: {result.text}")
    several = dict.fromkeys(prompts, 6)
    name = first[0].mode
    widths = {**_WIDTHS, **several, f"x {name}": 3 + len(name), f"same as {name}": 19}
    _say(_rule("┏━┳┓", widths))
    _say(_cells(list(widths), widths, "┃"))
    _say(_rule("┡━╇┩", widths))
    others: list[GenerationResult] = []
    speeds: dict[str, float] = {}
    for results in chain((first,), rows):
        stats = Stats.pooled(result.stats for result in results)
        mode, acceptance = results[0].mode, stats.acceptance_length
        speeds[mode] = stats.completion_tokens / sum(result.stats.seconds for result in results)
        ttft = median(result.stats.time_to_first_token or 0 for result in results)
        block = results[0].settings.get("block_length")
        row = [
            mode,
            "" if block is None else str(block),
            str(stats.completion_tokens),
            str(stats.nfe),
            f"{stats.tokens_per_forward:.2f}",
            "" if acceptance is None else f"{acceptance:.2f}",
            f"{speeds[mode]:.1f}",
            f"{ttft * 1e3:.0f}",
            *(f"{result.stats.tokens_per_second:.1f}" for result in results if several),
            f"{speeds[mode] / speeds[name]:.2f}",
            _sameness(results, first),
        ]
        _say(_cells(row, widths, "│"))
        if row[-1].startswith("no"):
            others += results
    _say(_rule("└─┴┘", widths))
    for result in others:
        _say(f"{result.mode}: {result.text}")
    if not model.can_draft:
        _say(
            f"{model.name} is an unconverted AR checkpoint: it was never trained to fill masks. "
            "Its acceptance and its diffusion figures say nothing about the method; linear and "
            "quadratic emit AR's tokens all the same."
        )
    if name == "ar" and len(speeds) > 1:
        _say(_what_pays(model, speeds))


_WORTH = 1.03
"""By what factor a mode must be faster than `ar` to be named; less may be chance."""


def _what_pays(model: "LoadedModel", speeds: Mapping[str, float]) -> str:
    """What is fastest on this machine, and why, in a sentence."""
    from trimode.decoding import LOSSLESS_MODES
    from trimode.engine.costs import cost_curve

    lossless = {mode: speed for mode, speed in speeds.items() if mode in LOSSLESS_MODES}
    best = max(lossless, key=lossless.__getitem__)
    curve = cost_curve(model)
    steep = curve.seconds(8) / curve.seconds(1)
    why = f"a pass of 8 rows costs {steep:.1f} times a pass of one row here"
    ratio = lossless[best] / speeds["ar"]
    if ratio < _WORTH:
        return f"Here ar is as fast as anything: {why}, more than the drafts bring."
    slower = [mode for mode, speed in lossless.items() if speed < speeds["ar"] / _WORTH]
    found = f"Here {best} pays: {ratio:.2f} times as fast as ar, with the same text."
    if not slower:
        return f"{found} {why.capitalize()}."
    verb = "loses" if len(slower) == 1 else "lose"
    return f"{found} {' and '.join(slower)} {verb}: {why}."


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


def _sameness(
    results: Sequence["GenerationResult"], references: Sequence["GenerationResult"]
) -> str:
    """Whether all answers are the reference's; else where the first that is not departs."""
    if results is references:
        return ""
    found = [_same(*pair) for pair in zip(results, references, strict=True)]
    return next((answer for answer in found if answer != "yes"), "yes")


def _same(result: "GenerationResult", reference: "GenerationResult") -> str:
    pairs = zip(result.token_ids, reference.token_ids, strict=False)
    differs = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if differs is None and len(result.token_ids) == len(reference.token_ids):
        return "yes"
    shorter = min(len(result.token_ids), len(reference.token_ids))
    return f"no, from token {(shorter if differs is None else differs) + 1}"
