"""`trimode`: the commands, and the one place where errors become a line and an exit code."""

import io
import os
import sys
from contextlib import suppress
from typing import Annotated, NoReturn

import typer

from trimode.cli import signals
from trimode.cli.bench import bench
from trimode.cli.chat import chat
from trimode.cli.compare import compare, demo
from trimode.cli.env import env
from trimode.cli.evaluate import evaluate
from trimode.cli.export import export
from trimode.cli.generate import generate
from trimode.cli.models import models_app
from trimode.cli.serve import serve
from trimode.cli.train import convert, train, train_head
from trimode.cli.tune import tune
from trimode.cli.verify import verify
from trimode.errors import TrimodeError

app = typer.Typer(
    name="trimode",
    help="One language-model checkpoint, three ways to decode it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(chat)
app.command()(compare)
app.command()(demo)
app.command()(serve)
app.command()(bench)
app.command()(tune)
app.command()(verify)
app.command("eval")(evaluate)
app.add_typer(models_app, name="models")
app.command()(convert)
app.command()(train)
app.command()(train_head)
app.command()(export)
app.command()(env)


def _version(wanted: bool) -> None:
    if wanted:
        from trimode.version import __version__

        typer.echo(f"trimode {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 2 bad usage or input, 1 failure, 130 and 143 interrupted.
    """
    signals.install()
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal cannot show must not end the run
        sys.stdout.reconfigure(errors="replace")
    code = _run()
    if code in (130, 143):
        signals.ignore_to_the_end()  # the same signal once more would change the exit code
    _exit(code)


def _exit(code: int) -> NoReturn:
    """End the process; one of several that train, without the end of the interpreter.

    Gloo's threads outlive their groups. One that still frees a tensor while the interpreter ends
    aborts the process ("terminate called without an active exception").
    """
    training = sys.modules.get("trimode.training.distributed")
    if training is None or training.process_count() == 1:
        sys.exit(code)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
        sys.stdout.flush()  # a full disk or a reader that has gone is handled here
        return code
    except TrimodeError as error:
        return _fail(str(error), error.exit_code)
    except typer.Exit as done:
        return done.exit_code
    except signals.Terminated:
        return 143
    except (KeyboardInterrupt, typer.Abort):  # typer itself returns 130 for most of these
        return 130
    except BrokenPipeError:  # the reader has gone; nothing more to say
        _drop_stdout()
        return 0
    except Exception as error:
        if _is_usage_error(error):
            error.show()  # type: ignore[attr-defined]
            return 2
        if os.environ.get("TRIMODE_DEBUG"):
            raise
        if isinstance(error, OSError):
            _drop_stdout()
            return _fail(str(error), 1)
        what = f"{type(error).__name__}: {error}"
        return _fail(f"internal error: {what} (TRIMODE_DEBUG=1 shows the traceback)", 1)


def _drop_stdout() -> None:
    """Send what is still buffered nowhere; the interpreter would fail on it again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_usage_error(error: Exception) -> bool:
    return hasattr(error, "show") and hasattr(error, "format_message")


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"error: {message}\n")
    return code
