"""Grammars of strangers: tried in a process of their own first.

Some schemas of a few hundred bytes take minutes and gigabytes to compile, or overflow the stack of
the library, and nothing can stop a compilation from within. The process has limits and can be
killed. It compiles for a vocabulary of bytes, since the cost does not depend on the vocabulary.
"""

import json
import math
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import IO, cast

from trimode.errors import InputError

SECONDS = 5.0
"""Most time to compile a grammar."""
MEGABYTES = 256
"""Most memory to compile a grammar."""

_REMEMBERED = 256
"""Verdicts that are kept."""

Verdict = tuple[str, list[str]]
"""Why a grammar is refused, or the empty text; and what of it is not enforced."""

_CHILD = Path(__file__).with_name("grammar_child.py")


class GrammarCheck:
    """Checks grammars, one at a time. The process starts with the first and ends with `close`."""

    def __init__(self, *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> None:
        self.seconds, self._megabytes = seconds, megabytes
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Verdict] = OrderedDict()

    def check(self, grammar: str, *, seconds: float | None = None) -> list[str]:
        """Return what of the grammar will not be enforced, if it can be compiled.

        Args:
            grammar: in llguidance's form.
            seconds: most time to take; the limit of all by default.

        Raises:
            InputError: it is not valid, or takes too much time or memory.
        """
        with self._lock:
            if grammar in self._known:
                self._known.move_to_end(grammar)
            else:
                self._known[grammar] = self._ask(grammar, min(seconds or math.inf, self.seconds))
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            fault, warnings = self._known[grammar]
        if fault:
            raise InputError("grammar", fault, "must be a grammar that llguidance takes")
        return warnings

    def _ask(self, grammar: str, seconds: float) -> Verdict:
        child = self._running()
        late = threading.Timer(seconds, child.kill)
        late.start()
        try:
            answer = _ask(child, grammar)
        finally:
            late.cancel()
        if answer is None:
            self._end()
            return f"takes more than {seconds:.3g} seconds or {self._megabytes} MB", []
        return answer

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-P", str(_CHILD), str(self._megabytes)]
            self._child = subprocess.Popen(
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


def _ask(child: subprocess.Popen[bytes], grammar: str | None) -> Verdict | None:
    """What the process says of a grammar. None: the process has died."""
    try:
        stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
        stdin.write(json.dumps(grammar).encode() + b"\n")
        stdin.flush()
        line = stdout.readline()
        return tuple(json.loads(line)) if line.endswith(b"\n") else None
    except OSError:
        return None
