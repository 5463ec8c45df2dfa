"""The server's log: JSON, one object a line, without the text of prompts unless asked."""

import json
import logging
import queue
import sys
import threading
import time
from contextlib import suppress
from typing import TextIO

from trimode.server.worker import EndReason, Request
from trimode.text import Tokenizer

_MOST_LINES = 10_000
"""Lines that wait to be written; more are dropped."""
_FLUSH_SECONDS = 1.0

logger = logging.getLogger(__name__)


def log_to(stream: TextIO = sys.stderr, *, requests: bool = True) -> logging.Handler:
    """Send what the server and its libraries log to a stream.

    Args:
        stream: where to write.
        requests: a line for each request, not only warnings and errors.
    """
    handler = LineWriter(stream)
    for name in ("trimode", "uvicorn", "opentelemetry"):
        found = logging.getLogger(name)
        found.handlers, found.propagate = [handler], False
        found.setLevel(logging.WARNING)
    if requests:
        logging.getLogger("trimode.server").setLevel(logging.INFO)
    return handler


class LineWriter(logging.Handler):
    """Writes in a thread of its own: a pipe that nobody reads must not stop the engine."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self._lines: queue.Queue[str] = queue.Queue(_MOST_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line."""
        with suppress(queue.Full):
            self._lines.put_nowait(as_json(record))

    def flush(self) -> None:
        """Wait a moment for what is queued."""
        end = time.monotonic() + _FLUSH_SECONDS
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            text = self._lines.get()
            with suppress(OSError, ValueError):  # the reader has gone, or the stream is closed
                self.stream.write(text + "\n")
                self.stream.flush()
            self._lines.task_done()


def as_json(record: logging.LogRecord) -> str:
    """A record as one line; `facts` given with it become fields."""
    fields = {
        "time": round(record.created, 3),
        "level": record.levelname.lower(),
        "event": record.getMessage(),
        **getattr(record, "facts", {}),
    }
    if record.exc_info:
        fields["exception"] = logging.Formatter().formatException(record.exc_info)
    return json.dumps(fields, ensure_ascii=False, default=str)


class RequestLog:
    """A line for each answer that ended, however it did."""

    def __init__(self, tokenizer: Tokenizer, *, prompts: bool) -> None:
        self._tokenizer, self._prompts = tokenizer, prompts

    def finished(self, request: Request, reason: EndReason) -> None:
        """Log a request."""
        if not logger.isEnabledFor(logging.INFO):
            return
        sequence = request.sequence
        stats = sequence.stats
        now = time.monotonic()
        facts: dict[str, object] = {
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
