"""A trace file: what a stream with drafts would have carried, one object a line."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.engine import Update


class Trace:
    """Writes chunks as they come. The playground opens the file; docs/streaming.md describes it."""

    def __init__(self, path: Path, model: "LoadedModel") -> None:
        """Open the file.

        Raises:
            InputError: it cannot be written.
        """
        from trimode.server.openai.chat import ChatAnswer

        self._answer = ChatAnswer(id="trace", model=model, model_name=model.name)
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise InputError("trace", str(path), f"must be writable ({error.strerror})") from None
        self._began = time.monotonic()

    def __enter__(self) -> "Trace":
        self._write(self._answer.role_chunk(0))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def show(self, update: "Update") -> None:
        """Take one update of the engine."""
        from trimode.server.runtime import Step

        sequence = update.sequence
        step = Step(update, sequence.finish_reason, sequence.stats.nfe)
        for chunk in self._answer.step_chunks(0, step, show_drafts=True):
            self._write(chunk)
        if sequence.finish_reason is not None:
            self._write(self._answer.usage_chunk([sequence]))

    def _write(self, chunk: dict[str, Any]) -> None:
        milliseconds = round((time.monotonic() - self._began) * 1e3, 1)
        line = json.dumps({**chunk, "trimode_ms": milliseconds}, ensure_ascii=False)
        self._file.write(line + "\n")
