"""A terminal small enough to read: a pty, and what its user would see, scrolled-off lines too."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Callable

from tests.cli.conftest import TRIMODE, child_environment

_PATIENCE = 12
"""Seconds without any output after which a test fails."""

_PIECE = re.compile(r"\x1b\[(?P<number>[\d;?]*)(?P<code>[A-Za-z])|(?P<character>.)", re.DOTALL)


class Screen:
    """Lines of text under a cursor that cannot leave the last `height` of them."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.lines: list[list[str]] = [[]]
        self.row = self.column = 0

    @property
    def text(self) -> str:
        return "\n".join("".join(line).rstrip() for line in self.lines).rstrip()

    def feed(self, data: str) -> None:
        for piece in _PIECE.finditer(data):
            if piece["character"] is None:
                self._control(piece["code"], piece["number"])
            elif piece["character"] == "\n":
                self._down()
            elif piece["character"] == "\r":
                self.column = 0
            elif piece["character"] not in "\x07":
                self._put(piece["character"])

    def _control(self, code: str, number: str) -> None:
        if code == "A":
            top = max(0, len(self.lines) - self.height)
            self.row = max(top, self.row - int(number or 1))
        elif code == "K":
            assert number == "2", f"erase {number}"
            self.lines[self.row] = []
        else:
            assert code in "mhl", f"control sequence {code}"

    def _put(self, character: str) -> None:
        if self.column == self.width:
            self.column = 0
            self._down()
        line = self.lines[self.row]
        line.extend(" " * (self.column + 1 - len(line)))
        line[self.column] = character
        self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])


def run(
    *arguments: object,
    width: int = 100,
    height: int = 50,
    typed: Callable[[str, "Terminal"], None] | None = None,
) -> tuple[int, str]:
    """Exit code and raw output of a command that has a terminal for everything.

    `typed` is called after each piece of output with all of it, to type or to press Ctrl-C.
    """
    with Terminal(arguments, width, height) as terminal:
        while (piece := terminal.read()) is not None:
            terminal.seen += piece
            if typed is not None:
                typed(terminal.seen, terminal)
        return terminal.process.wait(timeout=30), terminal.seen


class Terminal:
    """A process on a pty of its own, the controlling one, so that Ctrl-C works as typed."""

    def __init__(self, arguments: tuple[object, ...], width: int, height: int) -> None:
        self.controller, terminal = pty.openpty()
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        environment = child_environment(TERM="xterm-256color")
        environment.pop("COLUMNS", None)
        environment.pop("LINES", None)
        self.seen = ""
        self.process = subprocess.Popen(
            [TRIMODE, *map(str, arguments)],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.controller)

    def read(self) -> str | None:
        """The next piece of output; None once the process has let go of the terminal."""
        ready, _, _ = select.select([self.controller], [], [], _PATIENCE)
        assert ready, f"nothing for {_PATIENCE} s after {self.seen!r}"
        try:
            piece = os.read(self.controller, 65_536)
        except OSError:
            return None
        return piece.decode(errors="replace") if piece else None

    def type(self, text: str) -> None:
        os.write(self.controller, text.encode())
