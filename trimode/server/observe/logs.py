"""The server's log: one JSON object a line. It holds no text of prompts unless asked to."""

import json
import logging
import queue
import re
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from trimode.server.runtime import ActiveRequest, EndReason
from trimode.text import Tokenizer

_MOST_LINES = 10_000
"""Lines that may wait to be written; more are dropped."""
_MOST_IGNORED = 100
"""Names of ignored fields that are remembered."""
_FLUSH_SECONDS = 1.0

_UNSEEN = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""Characters that end lines or turn text around for other programs; JSON lets them stand."""

logger = logging.getLogger(__name__)


def log_to(output: TextIO = sys.stderr, *, requests: bool = True) -> logging.Handler:
    """Write what the server and its libraries log.

    Args:
        output: the file to write to.
        requests: log a line for each request, not only warnings and errors.
    """
    handler = LineWriter(output)
    for name in ("trimode", "uvicorn", "opentelemetry"):
        found = logging.getLogger(name)
        found.handlers, found.propagate = [handler], False
        found.setLevel(logging.WARNING)
    if requests:
        logging.getLogger("trimode.server").setLevel(logging.INFO)
    return handler


class LineWriter(logging.Handler):
    """Writes in a thread of its own: if nobody reads the pipe, the engine must not wait for it."""

    def __init__(self, output: TextIO) -> None:
        super().__init__()
        self.output = output
        self._lines: queue.Queue[str] = queue.Queue(_MOST_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        with suppress(queue.Full):
            self._lines.put_nowait(as_json(record))

    def flush(self) -> None:
        """Wait a moment until the queue is written."""
        end = time.monotonic() + _FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            text = self._lines.get()
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                self.output.write(text + "\n")
                self.output.flush()
            self._lines.task_done()


def as_json(record: logging.LogRecord) -> str:
    """A record as one line; its `facts` become fields of the object."""
    fields = {
        "time": round(record.created, 3),
        "level": record.levelname.lower(),
        "event": record.getMessage(),
        **getattr(record, "facts", {}),
    }
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    text = json.dumps(fields, ensure_ascii=False, default=str)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class RequestLog:
    """Logs a line for each request that has ended, however it ended."""

    def __init__(self, tokenizer: Tokenizer, *, prompts: bool) -> None:
        self._tokenizer, self._prompts = tokenizer, prompts

    def finished(self, request: ActiveRequest, reason: EndReason) -> None:
        """Log a request."""
        if not logger.isEnabledFor(logging.INFO):
            return
        sequence = request.sequence
        stats = sequence.stats
        now = time.monotonic()
        facts: dict[str, object] = {
            "id": sequence.id,
            "mode": sequence.options.mode,
            "finish_reason": reason,
            "prompt_tokens": len(sequence.prompt),
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.completion_tokens,
            "nfe": stats.nfe,
            "queue_seconds": round((stats.admitted_at or now) - request.arrived, 4),
            "seconds": round((stats.finished_at or now) - request.arrived, 4),
        }
        if stats.first_token_at is not None:
            facts["first_token_seconds"] = round(stats.first_token_at - request.arrived, 4)
        if self._prompts:
            prompt = list(sequence.prompt)
            facts["prompt"] = self._tokenizer.decode(prompt, skip_special=False)
            facts["text"] = sequence.text_stream.text
        logger.info("request", extra={"facts": facts})


class IgnoredFields:
    """Logs the body fields that the server ignores, each name once.

    A client cannot tell that a field is ignored; whoever runs the server can.
    """

    def __init__(self) -> None:
        self._names: set[str] = set()

    def note(self, names: Iterable[str]) -> None:
        """Log the names that were not seen before."""
        for name in names:
            if name not in self._names and len(self._names) < _MOST_IGNORED:
                self._names.add(name)
                logger.warning("ignored", extra={"facts": {"field": name[:80]}})
