"""SIGTERM as an exception."""

import signal
from typing import NoReturn


class Terminated(BaseException):
    """The process was asked to end; what runs cleans up after itself.

    No KeyboardInterrupt: that ends an answer of a chat, this ends the program.
    """


def _raise(*_: object) -> NoReturn:
    raise Terminated


def install() -> None:
    """Turn SIGTERM into an exception."""
    signal.signal(signal.SIGTERM, _raise)
