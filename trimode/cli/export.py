"""`trimode export`: a checkpoint for other programs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from trimode.cli import options as opt
from trimode.cli.render import note, spinner
from trimode.cli.signals import Terminated, interrupted_once


def export(
    model: Annotated[str, typer.Argument(help="Name, path, hub: or pypi: source.")],
    directory: Annotated[Path, typer.Argument(help="Where it goes; appears when it is whole.")],
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="ar: its AR model in its family's own layout, for transformers, vLLM and others. "
            "nld: NVIDIA's layout, with linear_spec_lora/ if it has an adapter for drafts.",
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            help="An ordinary LoRA is added to the weights; none leaves the model's own out.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="fp32, bf16, fp16, or auto: that of the source.")
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint in DIRECTORY.")
    ] = False,
    offline: opt.Offline = False,
    no_progress: opt.NoProgress = False,
) -> None:
    """Write a checkpoint that other programs load.

    The same command continues an interrupted one.
    """
    with spinner("starting", enabled=not no_progress):  # importing torch takes a second or two
        from trimode.checkpoints import plan_export, resolve, write_export
    from rich.console import Console
    from rich.progress import Progress

    source = resolve(model, offline=offline, progress=not no_progress)
    plan = plan_export(source, form, dtype=dtype, adapter=adapter)
    for line in plan.notes:
        note(line)
    console = Console(stderr=True)
    disabled = no_progress or not console.is_terminal
    try:
        with (
            interrupted_once(),
            Progress(console=console, transient=True, disable=disabled) as bar,
        ):
            task = bar.add_task(f"{plan.tensors} tensors", total=plan.tensors)
            write_export(
                plan, directory, overwrite=overwrite, advance=lambda n: bar.advance(task, n)
            )
    except (KeyboardInterrupt, Terminated):
        sys.stderr.write("stopped; the same command continues\n")
        raise
    typer.echo(str(directory))
