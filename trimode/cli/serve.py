"""`trimode serve`: an OpenAI-compatible server."""

import errno
import json
import shlex
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trimode.cli import options as opt
from trimode.cli.config_file import take_config
from trimode.cli.grouped import grouped
from trimode.config import SERVED_MAX_TOKENS
from trimode.errors import InputError

if TYPE_CHECKING:
    from trimode.checkpoints import LoadedModel
    from trimode.decoding import CostCurve
    from trimode.server import ServerSettings, Service

_LOGS = ("warnings", "requests", "prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressOptions:
    """Where the server listens."""

    host: Annotated[str, typer.Option("--host", envvar="TRIMODE_HOST", help="Address to bind.")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int,
        typer.Option("--port", envvar="TRIMODE_PORT", min=0, max=65535, help="0: any free one."),
    ] = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessOptions:
    """The name of the model, and who may use it."""

    served_model_name: Annotated[
        str | None, typer.Option("--served-model-name", help="The name clients use.")
    ] = None
    api_key: Annotated[
        list[str] | None,
        typer.Option("--api-key", envvar="TRIMODE_API_KEY", help="Repeat for several."),
    ] = None
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="One key a line.")] = (
        None
    )
    cors_origin: Annotated[
        list[str] | None,
        typer.Option("--cors-origin", help="A web page that may use it; repeat for several."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """How many requests it takes, and how long they may last."""

    max_sequences: Annotated[
        int, typer.Option("--max-sequences", help="Requests decoded at once.")
    ] = 16
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", help="Requests that may wait; more get 429.")
    ] = 64
    request_timeout: Annotated[
        float, typer.Option("--request-timeout", help="Seconds until a request is cancelled.")
    ] = 600.0
    shutdown_timeout: Annotated[
        float, typer.Option("--shutdown-timeout", help="Seconds for what runs, once told to stop.")
    ] = 30.0
    sse_ping_interval: Annotated[
        float, typer.Option("--sse-ping-interval", help="Seconds of silence until a comment.")
    ] = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """Which pictures it takes, if the model reads pictures."""

    allow_image_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-image-hosts",
            metavar="HOST",
            help="Fetch pictures by URL from there: a host, *.DOMAIN, or * for every host that is "
            "public; repeat for several.",
        ),
    ] = None
    max_images: Annotated[int, typer.Option("--max-images", help="Pictures of a request.")] = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """What the server tells its operator."""

    log: Annotated[
        str, typer.Option("--log", help="warnings, requests, or prompts (with their text).")
    ] = "requests"
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(
            "--otlp-traces-endpoint", metavar="URL", help="Send OpenTelemetry spans there."
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDefaults(opt.DecodingOptions):
    """Decoding options of requests that do not give them.

    The temperature is that of every command, 0. OpenAI's 1 makes small models write nonsense.
    """

    max_tokens: opt.MaxTokens = SERVED_MAX_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What is served and how, wherever it listens."""

    model: opt.ModelOptions
    mode: str
    decoding: RequestDefaults
    access: AccessOptions
    limits: LimitOptions
    pictures: PictureOptions
    record: RecordOptions

    def settings(self) -> "ServerSettings":
        """What the server is started with.

        Raises:
            InputError: a value is out of range, or the file of keys cannot be read.
        """
        if self.record.log not in _LOGS:  # before the import, which takes seconds
            raise InputError("log", repr(self.record.log), f"allowed: {', '.join(_LOGS)}")
        from trimode.server import ServerSettings

        access, limits = self.access, self.limits
        return ServerSettings(
            name=access.served_model_name,
            defaults=self.decoding.for_mode(self.mode),
            max_sequences=limits.max_sequences,
            max_waiting=limits.max_waiting,
            request_timeout=limits.request_timeout,
            shutdown_timeout=limits.shutdown_timeout,
            api_keys=(*(access.api_key or ()), *_keys_of(access.api_key_file)),
            cors_origins=tuple(access.cors_origin or ()),
            allow_image_hosts=tuple(self.pictures.allow_image_hosts or ()),
            max_images=self.pictures.max_images,
            ping_interval=limits.sse_ping_interval,
            log_prompts=self.record.log == "prompts",
            otlp_traces_endpoint=self.record.otlp_traces_endpoint,
        )

    def open(self, settings: "ServerSettings", *, progress: bool) -> "Service":
        """Load the model, measure it, and write the log to stderr from now on."""
        from trimode.engine.costs import cost_curve, is_kept
        from trimode.server import log_to, open_service

        def load() -> "LoadedModel":
            return opt.load_model(self.model, progress=progress, asked=[settings.defaults])

        def measure(loaded: "LoadedModel") -> "CostCurve":
            if not is_kept(loaded):
                why = "timing passes, up to half a minute, once for this model and machine"
                _say(why, enabled=progress)
            return cost_curve(loaded)

        service = open_service(settings, load, measure=measure)
        log_to(sys.stderr, requests=self.record.log != "warnings")
        return service


@grouped
def serve(
    name: opt.ModelArgument = None,
    *,
    model: opt.ModelOptions,
    mode: opt.Mode = "auto",
    decoding: RequestDefaults,
    address: AddressOptions,
    access: AccessOptions,
    limits: LimitOptions,
    pictures: PictureOptions,
    record: RecordOptions,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            callback=take_config,
            is_eager=True,
            help="YAML of these options by their long names, as `trimode bench` writes it.",
        ),
    ] = None,
    no_progress: opt.NoProgress = False,
) -> None:
    """Serve a model to OpenAI clients.

    Decoding options are defaults for requests that do not give them. OpenAI's own default is
    --temperature 1. The command line and the environment win over --config.
    """
    del config  # read by its callback
    served = Served(
        model=model.named(name),
        mode=mode,
        decoding=decoding,
        access=access,
        limits=limits,
        pictures=pictures,
        record=record,
    )
    check_address(address.host, address.port)
    _say(f"loading {served.model.model}", enabled=not no_progress)
    settings = served.settings()
    service = served.open(settings, progress=not no_progress)
    from trimode.server import freeze_memory, open_server

    server = open_server(service, host=address.host, port=address.port)
    sys.stderr.write(
        ready_message(
            service.name, server.url, settings.defaults.mode, needs_key=bool(settings.api_keys)
        )
    )
    sys.stderr.flush()
    freeze_memory()
    server.run()


def check_address(host: str, port: int) -> None:
    """Raise InputError, before any long work, if the server could not listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        reason = f"{host!r} ({error.strerror})"
        raise InputError("host", reason, "must be an address of this machine") from None
    try:
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            found = f"{port} is taken on {host}"
            raise InputError("port", found, "stop what listens there, or give another") from None
        reason = f"{port} on {host} cannot be used ({error.strerror})"
        raise InputError("port", reason, "another port or host") from None


def ready_message(name: str, url: str, mode: str, *, needs_key: bool) -> str:
    """Where the server is, and a command that gets an answer; the key itself is never shown."""
    key = ' -H "Authorization: Bearer $TRIMODE_API_KEY"' if needs_key else ""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Hi"}]})
    return (
        f"{name} at {url}/v1, mode {mode}\n"
        f"playground: {url}/\n"
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d {shlex.quote(body)}\n"
    )


def _say(line: str, *, enabled: bool) -> None:
    """One line on stderr, at once."""
    if enabled:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _keys_of(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError("api_key_file", str(path), f"must be readable ({error})") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise InputError("api_key_file", str(path), "must hold at least one key")
    return keys
