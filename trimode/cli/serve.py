"""`trimode serve`: an OpenAI-compatible server."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from trimode.cli import options as opt
from trimode.cli.grouped import grouped
from trimode.config import check_range
from trimode.errors import InputError

_LOGS = ("warnings", "requests", "prompts")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Where the server listens, and who may use it."""

    host: Annotated[str, typer.Option("--host", envvar="TRIMODE_HOST", help="Address to bind.")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int,
        typer.Option("--port", envvar="TRIMODE_PORT", min=0, max=65535, help="0: any free one."),
    ] = 8000
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
    """Decoding options of requests that do not give them; OpenAI has the same temperature."""

    max_tokens: opt.MaxTokens = 1024
    temperature: opt.Temperature = 1.0


@grouped
def serve(
    *,
    name: opt.ModelArgument = None,
    model: opt.ModelOptions,
    mode: opt.Mode = "auto",
    decoding: RequestDefaults,
    network: NetworkOptions,
    limits: LimitOptions,
    record: RecordOptions,
    no_progress: opt.NoProgress = False,
) -> None:
    """Serve a model to OpenAI clients; its decoding options are defaults for requests."""
    if record.log not in _LOGS:
        raise InputError("log", repr(record.log), f"allowed: {', '.join(_LOGS)}")
    check_range("shutdown_timeout", limits.shutdown_timeout, 0, None)
    if record.otlp_traces_endpoint is not None:  # before the model loads
        from trimode.server.telemetry import check_endpoint

        check_endpoint(record.otlp_traces_endpoint)
    defaults = decoding.for_mode(mode)
    keys = (*(network.api_key or ()), *_keys_of(network.api_key_file))
    thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
    loaded = thread.submit(opt.load_model, model.named(name), progress=not no_progress).result()

    from trimode.cli.render import spinner
    from trimode.engine.costs import cost_curve
    from trimode.server import HttpServer, ServerSettings, create_app, log_to

    with spinner("timing passes", enabled=not no_progress):
        costs = thread.submit(cost_curve, loaded).result()

    settings = ServerSettings(
        name=network.served_model_name or loaded.name,
        defaults=defaults,
        max_sequences=limits.max_sequences,
        max_waiting=limits.max_waiting,
        request_timeout=limits.request_timeout,
        api_keys=keys,
        cors_origins=tuple(network.cors_origin or ()),
        ping_interval=limits.sse_ping_interval,
        log_prompts=record.log == "prompts",
        otlp_traces_endpoint=record.otlp_traces_endpoint,
    )
    log_to(sys.stderr, requests=record.log != "warnings")
    app = create_app(loaded, settings, thread=thread, costs=costs)
    server = HttpServer(
        app, host=network.host, port=network.port, shutdown_timeout=limits.shutdown_timeout
    )
    socket = server.config.bind_socket()  # taken now: a port in use is an error before "ready"
    socket.listen()  # whoever reads the line below may connect at once
    shown = socket.getsockname()[1]
    url = f"http://{network.host}:{shown}/v1"
    sys.stderr.write(
        f"{settings.name} at {url}, mode {defaults.mode}\n"
        f"curl {url}/chat/completions -H 'Content-Type: application/json' "
        f'-d \'{{"model": "{settings.name}", "messages": '
        '[{"role": "user", "content": "Hi"}]}\'\n'
    )
    gc.collect()
    gc.freeze()  # what lives as long as the server need not be looked through again and again
    server.run(sockets=[socket])


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
