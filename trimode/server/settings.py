"""What a server is started with."""

from dataclasses import dataclass, field

from trimode.config import GenerationOptions, check_range
from trimode.errors import InputError
from trimode.server.telemetry import check_endpoint

DEFAULT_MAX_TOKENS = 1024
"""Tokens of an answer whose request names no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Deployment-time choices; a request may override what `defaults` holds."""

    name: str
    """The model name clients use."""
    defaults: GenerationOptions = field(
        default_factory=lambda: GenerationOptions(
            mode="auto", temperature=1.0, max_tokens=DEFAULT_MAX_TOKENS
        )
    )
    """Temperature 1 is OpenAI's default."""
    max_sequences: int = 16
    """Requests decoded at once."""
    max_waiting: int = 64
    """Requests that may wait for a slot; more are refused with 429."""
    request_timeout: float = 600.0
    """Seconds until an unfinished request is cancelled."""
    max_body_bytes: int = 8 * 2**20
    max_choices: int = 16
    """Largest `n`."""
    draft_fps: float = 20.0
    """Most draft frames a second and choice."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens the server; none: no key is asked for."""
    cors_origins: tuple[str, ...] = ()
    """Web pages that may use the server from a browser, besides its own; `*` is every page."""
    ping_interval: float = 15.0
    """Seconds of silence after which a stream sends a comment, so that proxies keep it open."""
    log_prompts: bool = False
    """Whether the log holds the text of prompts and answers."""
    otlp_traces_endpoint: str | None = None
    """Where OpenTelemetry spans are sent; None: nowhere."""

    def __post_init__(self) -> None:
        if self.otlp_traces_endpoint is not None:
            check_endpoint(self.otlp_traces_endpoint)
        check_range("max_sequences", self.max_sequences, 1, None)
        check_range("max_waiting", self.max_waiting, 0, None)
        check_range("request_timeout", self.request_timeout, 0, None, exclusive_low=True)
        check_range("ping_interval", self.ping_interval, 0, None, exclusive_low=True)
        check_range("max_body_bytes", self.max_body_bytes, 1, None)
        if any(not key for key in self.api_keys):
            raise InputError("api_key", "an empty key", "each key needs at least one character")
        if not all(key.isascii() and key.isprintable() for key in self.api_keys):
            raise InputError("api_key", "a key that no header can carry", "use printable ASCII")
