"""What a server is started with."""

from dataclasses import dataclass, field

from trimode.config import SERVED_MAX_TOKENS, GenerationOptions, check_range
from trimode.errors import InputError
from trimode.server.fetch import check_hosts
from trimode.server.observe.telemetry import check_endpoint
from trimode.vision import DEFAULT_LIMITS, ImageLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Deployment-time choices; a request may override what `defaults` holds."""

    name: str | None = None
    """The model name that clients use. None: the model's own."""
    defaults: GenerationOptions = field(
        default_factory=lambda: GenerationOptions(mode="auto", max_tokens=SERVED_MAX_TOKENS)
    )
    """Options that a request does not give."""
    max_sequences: int = 16
    """Requests decoded at once."""
    max_waiting: int = 64
    """Requests that may wait for a slot; more are refused with 429."""
    request_timeout: float = 600.0
    """Seconds after which an unfinished request is cancelled."""
    shutdown_timeout: float = 30.0
    """Seconds that running requests get to finish once the server has been told to stop."""
    max_body_bytes: int = 8 * 2**20
    """Of a request without pictures."""
    max_images: int = 8
    """Pictures of a request, if the model reads pictures."""
    image_limits: ImageLimits = DEFAULT_LIMITS
    """Of each of them."""
    allow_image_hosts: tuple[str, ...] = ()
    """Hosts whose http and https URLs are fetched; `*.example.org` is all below, `*` is any."""
    max_choices: int = 16
    """Largest `n`."""
    draft_fps: float = 20.0
    """Most draft frames a second for each choice."""
    api_keys: tuple[str, ...] = ()
    """Keys that open the server. None: no key is needed."""
    cors_origins: tuple[str, ...] = ()
    """Origins of other web pages that may use the server from a browser; `*` is any."""
    ping_interval: float = 15.0
    """Seconds of silence after which a stream sends a comment, so that proxies keep it open."""
    log_prompts: bool = False
    """Whether the log holds the text of prompts and answers."""
    otlp_traces_endpoint: str | None = None
    """URL to which OpenTelemetry spans are sent. None: there are no spans."""

    def __post_init__(self) -> None:
        if self.otlp_traces_endpoint is not None:
            check_endpoint(self.otlp_traces_endpoint)
        check_range("max_sequences", self.max_sequences, 1, None)
        check_range("max_waiting", self.max_waiting, 0, None)
        check_range("request_timeout", self.request_timeout, 0, None, exclusive_low=True)
        check_range("shutdown_timeout", self.shutdown_timeout, 0, None)
        check_range("ping_interval", self.ping_interval, 0, None, exclusive_low=True)
        check_range("max_body_bytes", self.max_body_bytes, 1, None)
        check_range("max_images", self.max_images, 1, None)
        check_hosts(self.allow_image_hosts)
        if any(not key for key in self.api_keys):
            raise InputError("api_key", "an empty key", "each key needs at least one character")
        if not all(key.isascii() and key.isprintable() for key in self.api_keys):
            raise InputError("api_key", "a key that no header can carry", "use printable ASCII")
