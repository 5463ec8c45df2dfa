"""SIGINT and SIGTERM end the program once, however often they are sent.

Under a cluster's launcher a process gets the same signal more than once: srun sends it to every
process of a step, and torchrun passes it on. The one that comes second must not end the cleaning up
that the first one began.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(BaseException):
    """The process was asked to end; what runs cleans up after itself.

    No KeyboardInterrupt: that ends an answer of a chat, this ends the program.
    """


def install() -> None:
    """Turn the first SIGTERM into an exception."""
    signal.signal(signal.SIGTERM, _terminate)


def ignore() -> None:
    """Let SIGINT and SIGTERM do nothing from now on: the program is about to end.

    SIGKILL still ends it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _nothing)


def ignore_to_the_end() -> None:
    """The same for a program that only has to exit.

    While Python ends, it puts the default in place of handlers of ours, but not of SIG_IGN.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Let the first SIGINT in the block raise KeyboardInterrupt, and end the program.

    Those after it do nothing. Without a block, as in a chat, each of them raises.
    """
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # no signal came
            signal.signal(signal.SIGINT, before)


def _terminate(_number: int, _frame: FrameType | None) -> NoReturn:
    ignore()
    raise Terminated


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    ignore()
    raise KeyboardInterrupt


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """No SIG_IGN: the programs that this one starts would inherit that."""
