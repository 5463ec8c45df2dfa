"""What the trainings here share: how they end early, report, and are kept."""

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

_FORGETTING = 0.05
"""Share of a step in the figures that are reported."""


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


class Report:
    """Moving averages of a training's figures, printed and added to a file."""

    def __init__(self, path: Path, console: Console, every: int) -> None:
        """`every`: so many steps are a line."""
        self._file = path.open("a", encoding="utf-8")
        self._console, self._every = console, every
        self.means: dict[str, float] = {}

    def add(self, step: int, seconds: float, now: Mapping[str, float], **facts: float) -> None:
        """Add a step's figures; `facts` are reported as they are."""
        for name, value in now.items():
            before = self.means.get(name, value)
            self.means[name] = (1 - _FORGETTING) * before + _FORGETTING * value
        if step % self._every:
            return
        shown = {name: round(mean, 4) for name, mean in self.means.items()}
        line = json.dumps({"step": step, "seconds": round(seconds, 1), **facts, **shown})
        self._file.write(line + "\n")
        self._file.flush()
        self._console.print(line, highlight=False, soft_wrap=True)


def keep(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state whole or not at all."""
    new = path.with_suffix(".new")
    torch.save(dict(state), new)
    new.replace(path)
