"""SIGTERM, handled as Ctrl-C is."""

import signal
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """The process was asked to end; what was running cleans up behind itself."""


def _raise(*_: object) -> NoReturn:
    raise Terminated


def install() -> None:
    """Turn SIGTERM into an exception."""
    signal.signal(signal.SIGTERM, _raise)
