"""How a training is ended early."""

import signal


class Stop:
    """Whether somebody asked the process to end: Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self._asked = False
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True

    def asked(self) -> bool:
        """Whether somebody did."""
        return self._asked
