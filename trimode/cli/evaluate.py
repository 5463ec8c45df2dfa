"""`trimode eval`: tasks of lm-evaluation-harness, in every mode and at every threshold."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.evaluation.harness.run import Plan, Scored, Setting

_MODES = "ar,linear,diffusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingOptions:
    """How tasks are decoded."""

    modes: Annotated[
        str, opt.option("--modes", help="Comma-separated; by default those the model can run.")
    ] = _MODES
    thresholds: Annotated[
        str | None,
        opt.option("--thresholds", help="Comma-separated, for diffusion: each is a setting."),
    ] = None
    block_length: opt.BlockLength = None
    force: opt.Force = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What tasks ask, and of which rows."""

    data: Annotated[
        Path | None,
        opt.option("--data", help="Directory of the local tasks' files, as `make data` makes it."),
    ] = None
    include_path: Annotated[
        Path | None, opt.option("--include-path", help="Directory of further task files.")
    ] = None
    limit: Annotated[
        int | None, opt.option("--limit", help="First rows of each task; all by default.")
    ] = None
    num_fewshot: Annotated[
        int | None, opt.option("--num-fewshot", help="Examples in a prompt [the task's own].")
    ] = None
    chat_template: Annotated[
        bool, opt.option("--chat-template", help="Put prompts into the model's chat template.")
    ] = False
    system: opt.System = None
    max_tokens: Annotated[
        int | None, opt.option("--max-tokens", help="Tokens of an answer [the task's own].")
    ] = None
    sequences: Annotated[int, opt.option("--sequences", help="Requests decoded at once.")] = 64
    no_sandbox: Annotated[
        bool, opt.option("--no-sandbox", help="Run code of answers with your own rights.")
    ] = False


@grouped
def evaluate(
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASKS", help="Names, separated by commas or spaces.")
    ],
    *,
    model: opt.ModelOptions,
    setting: SettingOptions,
    task: TaskOptions,
    speed_of_light: Annotated[
        int | None,
        typer.Option("--speed-of-light", help="Prompts to find diffusion's limit on, beside."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Directory of results; a run that was interrupted goes on."),
    ] = None,
    json_output: opt.Json = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Score a model on tasks, in every mode: accuracy beside speed.

    Tasks are those of lm-evaluation-harness, and ours from local files: gsm8k_local,
    humaneval_local, humaneval_chat_local, mbpp_local, ifeval_local. Code is run in a sandbox.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("eval", "lm_eval is not installed", "pip install 'trimode[eval]'")
    _check_numbers(task, speed_of_light)
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars beside our own
    asked = _settings(setting)
    from trimode.evaluation.harness.answers import AnswerFile
    from trimode.evaluation.harness.run import Plan, check
    from trimode.evaluation.harness.run import evaluate as run

    plan = Plan(
        tasks=[name for word in tasks for name in word.split(",") if name],
        data=task.data,
        limit=task.limit,
        num_fewshot=task.num_fewshot,
        chat_template=task.chat_template,
        system=task.system,
        sequences=task.sequences,
        max_gen_toks=task.max_tokens,
        sandbox=not task.no_sandbox,
        include_path=task.include_path,
        progress=not no_progress,
    )
    manager = check(plan)  # before the weights are read
    answers = AnswerFile(None if output is None else _directory(output) / "answers.jsonl")
    loaded = opt.load_model(model, progress=not no_progress)
    settings = _possible(loaded, asked, chosen=setting.modes != _MODES)
    if speed_of_light is not None and not any(each.mode == "diffusion" for each in settings):
        found = f"given, and diffusion is not among the modes ({setting.modes})"
        raise InputError("speed_of_light", found, "it is a limit of diffusion")
    results = run(loaded, plan, settings, answers, manager)
    _report(loaded, plan, settings, results, speed_of_light, output, json_output)


def _check_numbers(task: TaskOptions, speed_of_light: int | None) -> None:
    numbers = {
        "limit": task.limit,
        "sequences": task.sequences,
        "max_tokens": task.max_tokens,
        "speed_of_light": speed_of_light,
    }
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(name, str(value), "must be at least 1")
    if task.num_fewshot is not None and task.num_fewshot < 0:
        raise InputError("num_fewshot", str(task.num_fewshot), "must be at least 0")


def _settings(given: SettingOptions) -> list["Setting"]:
    """Each mode, and diffusion at each threshold.

    Raises:
        InputError: a mode or a threshold is no such thing, or is named twice.
    """
    from trimode.config import GenerationOptions
    from trimode.decoding import modes_reading
    from trimode.evaluation.harness.run import Setting

    names = [name.strip() for name in given.modes.split(",")]
    modes = [GenerationOptions.from_mapping({"mode": name}).mode for name in names]
    if len(set(modes)) != len(modes):
        raise InputError("modes", given.modes, "name each mode once")
    bars = _numbers(given.thresholds)
    if bars and "diffusion" not in modes:
        allowed = "only diffusion's answers depend on one; add it"
        raise InputError("thresholds", f"given for {given.modes}", allowed)
    in_blocks = modes_reading("block_length")
    if given.block_length and not set(in_blocks) & set(modes):
        raise InputError("block_length", str(given.block_length), f"not read by {given.modes}")
    found: list[Setting] = []
    for mode in modes:
        options: dict[str, Any] = {}
        if given.block_length is not None and mode in in_blocks:
            options["block_length"] = given.block_length
        if mode == "diffusion" and given.force:
            options["force"] = True
        for bar in bars if mode == "diffusion" and bars else [None]:
            each = Setting(mode, bar, options)
            GenerationOptions.from_mapping(each.fields)
            found.append(each)
    return found


def _numbers(text: str | None) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise InputError("thresholds", repr(text), "numbers, separated by commas") from None
    if len(set(found)) != len(found):
        raise InputError("thresholds", repr(text), "name each threshold once")
    return found


def _possible(model: "LoadedModel", settings: list["Setting"], *, chosen: bool) -> list["Setting"]:
    """The settings that the model can run; says which are left out unless they were chosen.

    Raises:
        InputError: the model cannot run what was chosen.
    """
    from trimode.cli.render import note
    from trimode.config import GenerationOptions
    from trimode.engine import check_mode

    found: list[Setting] = []
    for each in settings:
        options = GenerationOptions.from_mapping(each.fields)
        try:
            check_mode(model.config, model.adapter_scope, model.name, options)
        except InputError as error:
            if chosen:
                raise
            note(f"left out: {error}")
        else:
            found.append(each)
    return found


def _directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("output", f"{path} ({error.strerror})", "a directory") from None
    return path


def _report(
    model: "LoadedModel",
    plan: "Plan",
    settings: Sequence["Setting"],
    results: Iterator[tuple["Scored", list[list[int]]]],
    speed_of_light: int | None,
    output: Path | None,
    json_output: bool,
) -> None:
    """Run everything, and print and write what came out."""
    from trimode.evaluation.speed_of_light import pooled
    from trimode.evaluation.speed_of_light import speed_of_light as limit
    from trimode.version import __version__

    scored: list[Scored] = []
    limits: dict[str, Any] = {}
    filling = next((each.options for each in settings if each.mode == "diffusion"), {})
    for result, prompts in results:
        scored.append(result)
        if speed_of_light and result.mode == "diffusion" and result.task not in limits and prompts:
            asked = prompts[:speed_of_light]
            blocks = [block for prompt in asked for block in limit(model, prompt, **filling)]
            limits[result.task] = asdict(pooled(blocks))
    facts = {
        "trimode": __version__,
        "model": model.name,
        "kernel": model.runner.format.name,
        "sequences": plan.sequences,
        "limit": plan.limit,
        "chat_template": plan.chat_template,
        "results": [_fields(each) for each in scored],
        "aup": _areas(scored),
        **({"speed_of_light": limits} if speed_of_light else {}),
    }
    if output is not None:
        text = json.dumps(facts, indent=1) + "\n"
        (output / "results.json").write_text(text, encoding="utf-8")
        (output / "plot.svg").write_text(_plot(scored, limits), encoding="utf-8")
    if json_output:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        _print(facts)
        if output is not None:
            sys.stdout.write(f"written: {output / 'results.json'}, {output / 'plot.svg'}\n")


def _fields(scored: "Scored") -> dict[str, Any]:
    """A result as JSON: ratios beside the counts they come from."""
    usage = scored.usage
    return {
        **asdict(scored),
        "tokens_per_forward": usage and usage.tokens_per_forward,
        "tokens_per_second": usage and usage.tokens_per_second,
    }


def _areas(scored: Sequence["Scored"]) -> dict[str, dict[str, float]]:
    """AUP by task and mode; the best accuracy of all modes is what each is weighed against."""
    from trimode.evaluation.parallelism import accuracy_under_parallelism

    found: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(each.task for each in scored):
        own = [each for each in scored if each.task == task and each.usage is not None]
        best = max((each.value for each in own), default=0.0)
        for mode in dict.fromkeys(each.mode for each in own):
            points = [
                (each.usage.tokens_per_forward or 0.0, each.value)
                for each in own
                if each.mode == mode and each.usage is not None
            ]
            area = accuracy_under_parallelism(points, best)
            found.setdefault(task, {})[mode] = round(area, 2)
    return found


def _plot(scored: Sequence["Scored"], limits: dict[str, dict[str, Any]]) -> str:
    """Accuracy over speed for each task, and what commit rules reach of the speed of light."""
    from trimode.evaluation.plot import Panel, Point, plot
    from trimode.evaluation.speed_of_light import THRESHOLDS

    panels = []
    for task in dict.fromkeys(each.task for each in scored if each.usage):
        points = [
            Point(
                series=each.mode,
                label="" if each.threshold is None else f"{each.threshold:g}",
                x=each.usage.tokens_per_forward or 0.0,
                y=100 * each.value,
                low=100 * each.low,
                high=100 * each.high,
            )
            for each in scored
            if each.task == task and each.usage
        ]
        panels.append(Panel(task, "tokens per forward pass", "accuracy, %", points))
    for task, limit in limits.items():
        heights = {"speed of light": limit["acceptance"], "greedy": limit["greedy_acceptance"]}
        points = [
            Point(name, "", bar, height, height, height)
            for name, height in heights.items()
            for bar in (THRESHOLDS[0], THRESHOLDS[-1])
        ]
        for bar in THRESHOLDS:
            height, _ = limit["rules"][f"threshold {bar:g}"]
            points.append(Point("rule threshold", f"{bar:g}", bar, height, height, height))
        panels.append(
            Panel(
                f"{task}: diffusion's speed of light", "threshold", "tokens filled a pass", points
            )
        )
    return plot(panels)


_COLUMNS = ("accuracy, %", "95 %", "rows", "TPF", "tok/s", "cut off", "AUP")


def _print(facts: dict[str, Any]) -> None:
    """The table, a block of rows for each task."""
    results = facts["results"]
    lines: list[tuple[str, ...]] = [("", *_COLUMNS)]
    for task in dict.fromkeys(each["task"] for each in results):
        own = [each for each in results if each["task"] == task]
        lines.append((f"{task}: {own[0]['metric'].removesuffix(',none')}",))
        for i, each in enumerate(own):
            first = each["mode"] not in {before["mode"] for before in own[:i]}
            lines.append(
                _row(each, facts["aup"].get(task, {}).get(each["mode"]) if first else None)
            )
    whole = [line for line in lines if len(line) > 1]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    _say(f"{facts['model']}, {facts['kernel']}, {facts['sequences']} at once")
    for first, *cells in lines:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False)]
        _say("  ".join([first.ljust(widths[0]) if cells else first, *shown]))
    if any(each["shared"] for each in results):
        _say("* log-likelihoods are ar's in every mode: not run again")
    for task, found in facts.get("speed_of_light", {}).items():
        _say(f"{task}: {_limit(found)}")


def _row(result: dict[str, Any], area: float | None) -> tuple[str, ...]:
    return (
        f"  {result['setting']}{'*' if result['shared'] else ''}",
        f"{100 * result['value']:.1f}",
        f"{100 * result['low']:.1f} to {100 * result['high']:.1f}",
        str(result["rows"]),
        _figure(result["tokens_per_forward"], 2),
        _figure(result["tokens_per_second"], 1),
        str(result["truncated"]) if result["usage"] else "",
        _figure(area, 1),
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line.rstrip()}\n")


def _limit(found: dict[str, Any]) -> str:
    """The speed of light in a sentence."""
    reached = max(found["rules"].items(), key=lambda rule: rule[1][0])
    return (
        f"at the speed of light, diffusion fills {found['acceptance']:.2f} tokens a pass and makes "
        f"{found['tokens_per_forward']:.2f} with the pass that closes a block. Greedy parallel "
        f"acceptance fills {found['greedy_acceptance']:.2f}, and ends at the same text in "
        f"{100 * found['greedy_exact']:.0f} %; the boldest commit rule, {reached[0]}, fills "
        f"{reached[1][0]:.2f}, and does so in {100 * reached[1][1]:.0f} % "
        f"(blocks: {found['blocks']}, of {found['block_length']:g} tokens)"
    )


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
