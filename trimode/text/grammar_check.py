"""Grammars of strangers: tried in a process of their own first.

Some schemas of a few hundred bytes take minutes and gigabytes to compile, or overflow the stack of
the library, and nothing can stop a compilation from within. The process has limits and can be
killed. It compiles for a vocabulary of bytes, since the cost does not depend on the vocabulary.
"""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, cast

from trimode.errors import InputError

SECONDS = 5.0
"""Most time to compile a grammar."""
MEGABYTES = 256
"""Most memory to compile a grammar."""

_CHILD = Path(__file__).with_name("grammar_child.py")


class GrammarCheck:
    """Checks grammars, one at a time. The process starts with the first and ends with `close`."""

    def __init__(self, *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
        self._seconds, self._megabytes = seconds, megabytes
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def check(self, grammar: str) -> None:
        """Return if the grammar can be compiled. Blocks for at most the time limit.

        Raises:
            InputError: it is not valid, or takes too much time or memory.
        """
        with self._lock:
            child = self._running()
            late = threading.Timer(self._seconds, child.kill)
            late.start()
            try:
                answer = _ask(child, grammar)
            finally:
                late.cancel()
            if answer is None:
                self._end()
                found = f"takes more than {self._seconds:g} seconds or {self._megabytes} MB"
                raise InputError("grammar", found, "simplify it")
        if answer:
            raise InputError("grammar", answer, "must be a grammar that llguidance takes")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-P", str(_CHILD), str(self._megabytes)]
            self._child = subprocess.Popen(  # noqa: S603 - our own program
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the server's
            )
            _ask(self._child, None)  # it has started: its time counts from here
        return self._child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _ask(child: subprocess.Popen[bytes], grammar: str | None) -> str | None:
    """What the process says of a grammar: empty if it is right. None: the process has died."""
    try:
        stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
        stdin.write(json.dumps(grammar).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None
    except OSError:
        return None
