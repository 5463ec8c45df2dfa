"""What can be measured: our engine in this process, or a server."""

import math
from collections.abc import Sequence
from typing import Protocol

from trimode.bench.answers import Answer
from trimode.bench.settings import Setting


class Target(Protocol):
    """Answers groups of prompts in a setting."""

    @property
    def gone(self) -> str | None:
        """Why it answers no more; None if it does."""
        ...

    def warm_up(self, setting: Setting, prompt: int) -> float:
        """Answer one prompt; returns the seconds that it took."""
        ...

    def measure(
        self, setting: Setting, prompts: Sequence[int], round_: int, longest: float = math.inf
    ) -> list[Answer] | None:
        """Answer prompts under the setting's load; an answer that fails says so.

        None if the prompts are not answered after `longest`.

        Args:
            setting: of this target.
            prompts: numbers in the workload, none twice.
            round_: how often the workload was begun before.
            longest: seconds after which it gives up.
        """
        ...

    def forget(self, setting: Setting) -> None:
        """The setting is measured no more: free what is held for it."""
        ...
