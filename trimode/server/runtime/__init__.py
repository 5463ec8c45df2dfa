"""The engine's thread, and how its steps get to the event loop. Knows no HTTP."""

from trimode.server.runtime.fingerprint import fingerprint
from trimode.server.runtime.steps import Channel, ClientGoneError, Step
from trimode.server.runtime.token_counts import TokenCounts, token_counts
from trimode.server.runtime.worker import (
    ActiveRequest,
    Choice,
    EndReason,
    EngineFailedError,
    EngineWorker,
    GrammarFailedError,
    QueueFullError,
    StoppedError,
)

__all__ = [
    "ActiveRequest",
    "Channel",
    "Choice",
    "ClientGoneError",
    "EndReason",
    "EngineFailedError",
    "EngineWorker",
    "GrammarFailedError",
    "QueueFullError",
    "Step",
    "StoppedError",
    "TokenCounts",
    "fingerprint",
    "token_counts",
]
