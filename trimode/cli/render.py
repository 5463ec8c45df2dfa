"""What people see: spinner, figures after an answer, drafts repainted in place."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.cells import chop_cells
from rich.console import Console
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from trimode.decoding import Drafted, Stats
    from trimode.engine import Update
    from trimode.text import TextStream

_SECONDS_BETWEEN_PAINTS = 0.05
_SHADES = ("grey35", "grey50", "grey66", "grey82", "white")
"""Least to most confident."""
_MASK = "·"

UNTRAINED_NOTE = (
    "this checkpoint was not trained to draft: acceptance is low, the output is AR's all the same"
)


@contextmanager
def spinner(text: str, *, enabled: bool) -> Iterator[None]:
    """A spinner on stderr, if that is a terminal."""
    console = Console(stderr=True)
    shown = console.status(text) if enabled and console.is_terminal else nullcontext()
    with shown:
        yield


def note(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"note: {text}\n")


def figures(stats: "Stats", mode: str, prompt_tokens: int) -> str:
    """Speed and accounting of one answer, in the form people compare machines by."""
    first = stats.time_to_first_token or 0.0
    prompt_rate = prompt_tokens / first if first else 0.0
    rate = stats.tokens_per_second  # as --json and the library say it
    lines = [
        f"Prompt: {prompt_tokens} tokens, {prompt_rate:.1f} tokens-per-sec",
        f"Generation: {stats.completion_tokens} tokens, {rate:.1f} tokens-per-sec",
        f"Peak memory: {peak_memory_gb():.2f} GB",
        summary(stats, mode),
    ]
    return "\n".join(lines) + "\n"


def summary(stats: "Stats", mode: str) -> str:
    """Mode, NFE, TPF and acceptance on one line."""
    acceptance = stats.acceptance_length
    shown = "" if acceptance is None else f", acceptance {acceptance:.2f}"
    return f"mode {mode}, NFE {stats.nfe}, TPF {stats.tokens_per_forward:.2f}{shown}"


def peak_memory_gb() -> float:
    """Peak resident memory of this process, GB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class PlainPrinter:
    """Writes committed text to stdout as it comes."""

    def __enter__(self) -> "PlainPrinter":
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def show(self, update: "Update") -> None:
        """Take one update of the engine."""
        sys.stdout.write(update.text)
        sys.stdout.flush()


class DraftPrinter:
    """Repaints the open block after the committed text; brightness is confidence.

    Only the last line of the committed text is repainted with the block. Lines above it are
    printed once, so that an answer may grow taller than the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._line = ""
        """Committed text after the last line break."""
        self._painted_at = 0.0
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> "DraftPrinter":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(Text(self._line), refresh=True)
        self._live.stop()

    def show(self, update: "Update") -> None:
        """Take one update of the engine."""
        from trimode.decoding import Drafted

        if not isinstance(update.event, Drafted):
            self._commit(update.text)
            self._paint(Text(self._line))
            return
        sequence = update.sequence
        committed = len(sequence.prompt) + len(sequence.tokens)
        block = shaded(
            update.event, committed, sequence.text_stream, sequence.context.mask_token_id
        )
        self._paint(Text(self._line) + block)

    def _commit(self, text: str) -> None:
        """Print the lines that this text completes; keep the one that it leaves open."""
        lines = (self._line + text).split("\n")
        width = self._console.width
        *complete, self._line = [row for line in lines for row in chop_cells(line, width) or [""]]
        for row in complete:
            self._live.console.print(Text(row), no_wrap=True, overflow="ignore", crop=False)

    def _paint(self, text: Text) -> None:
        now = time.monotonic()
        if now - self._painted_at >= _SECONDS_BETWEEN_PAINTS:
            self._painted_at = now
            self._live.update(text, refresh=True)


def shaded(event: "Drafted", committed: int, stream: "TextStream", mask_token_id: int) -> Text:
    """The part of a draft that is not committed yet, as styled text.

    Args:
        event: a snapshot of the open block.
        committed: absolute position up to which text is final and shown already.
        stream: the answer's text so far; not changed.
        mask_token_id: positions that hold it show a dot.
    """
    skip = max(0, committed - event.start)
    tokens, states = event.tokens[skip:], event.states[skip:]
    known = [token for token in tokens if token != mask_token_id]
    pieces = iter(stream.detokenizer.preview(known))
    text = Text()
    for token, state, confidence in zip(tokens, states, event.confidences[skip:], strict=True):
        if token == mask_token_id:
            text.append(_MASK, style="dim")
            continue
        shade = _SHADES[min(int(confidence * len(_SHADES)), len(_SHADES) - 1)]
        style = f"{shade} underline" if state == "revised" else shade
        text.append(next(pieces), style=style)
    return text


def printer(*, show_drafts: bool) -> Any:
    """The printer for this stdout: drafts need a terminal."""
    console = Console()
    if show_drafts and console.is_terminal:
        return DraftPrinter(console)
    if show_drafts:
        note("stdout is no terminal: drafts are not shown")
    return PlainPrinter()
