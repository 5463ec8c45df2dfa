"""OpenTelemetry: one span for each answer.

A span is made when the last choice of the answer has ended, so none is ever left open. It holds no
text. OpenTelemetry's SDK is imported only if an endpoint is given.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from trimode.decoding import Stats
from trimode.errors import InputError
from trimode.server.runtime import ActiveRequest, EndReason, token_counts
from trimode.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

Operation = Literal["chat", "text_completion"]
"""OpenTelemetry's names for what an endpoint does (`gen_ai.operation.name`)."""

_LARGEST = 2**63 - 1
"""Largest whole number of a span."""
_FIELD = "otlp_traces_endpoint"
_FLUSH_SECONDS = 5.0
"""Seconds for the last spans when the server stops; the exporter itself would try for longer."""


def check_endpoint(endpoint: str) -> None:
    """Check that spans can be sent to an endpoint.

    Raises:
        InputError: it is not a URL of OTLP/HTTP, or the packages are not installed.
    """
    try:
        parts = urlsplit(endpoint)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        allowed = "must be a URL such as http://localhost:4318/v1/traces"
        raise InputError(_FIELD, repr(endpoint), allowed)
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError:
        raise InputError(
            _FIELD, "OpenTelemetry is not installed", "pip install 'trimode[telemetry]'"
        ) from None


class Tracing:
    """Sends spans to a collector over OTLP/HTTP, in batches, from a thread of its own."""

    def __init__(self, endpoint: str, model_name: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.model_name = model_name
        ours = Resource.create({"service.name": "trimode", "service.version": __version__})
        # This is not the global provider: a program that embeds the app may have its own. The
        # environment is merged last, so that OTEL_SERVICE_NAME wins.
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=_with_path(endpoint))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("trimode", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self,
        headers: Mapping[str, str],
        *,
        operation: Operation,
        model_name: str,
        answer_id: str,
        choices: int,
    ) -> "RequestSpan":
        """The span of a request; a W3C `traceparent` among its headers names the parent.

        Args:
            headers: of the HTTP request.
            operation: OpenTelemetry's name for the kind of endpoint.
            model_name: the name that the client asked for.
            answer_id: the answer's `id`.
            choices: choices that must end before the span does.
        """
        facts = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "trimode",
            "gen_ai.request.model": model_name,
            "gen_ai.response.model": self.model_name,
            "gen_ai.response.id": answer_id,
        }
        return RequestSpan(
            tracer=self._tracer,
            name=f"{operation} {model_name}",
            parent=self._propagator.extract(headers),
            facts=facts,
            choices=choices,
        )

    def stop(self) -> None:
        """Send the last spans, for a few seconds at most."""
        flush = threading.Thread(target=self._provider.shutdown, name="telemetry", daemon=True)
        flush.start()
        flush.join(_FLUSH_SECONDS)


@dataclass(slots=True, kw_only=True)
class RequestSpan:
    """A span to be; the choices of its answer end one by one, in the engine's thread."""

    tracer: "Tracer"
    name: str
    parent: "Context"
    facts: dict[str, str]
    choices: int
    ended: list[tuple[ActiveRequest, EndReason]] = field(default_factory=list)

    def finished(self, request: ActiveRequest, reason: EndReason) -> None:
        """Note that a choice has ended; the last one makes the span."""
        self.ended.append((request, reason))
        if len(self.ended) == self.choices:
            self.ended.sort(key=lambda one: one[0].index)
            self._export()

    def _export(self) -> None:
        from opentelemetry.trace import SpanKind, StatusCode

        age = time.monotonic() - self.ended[0][0].arrived
        reasons = [reason for _, reason in self.ended]
        span = self.tracer.start_span(
            self.name,
            context=self.parent,
            kind=SpanKind.SERVER,
            start_time=time.time_ns() - int(age * 1e9),
            attributes={**self.facts, **_measured([request for request, _ in self.ended])},
        )
        span.set_attribute("gen_ai.response.finish_reasons", reasons)
        failures = {"error", "abort"}.intersection(reasons)
        if failures:
            span.set_attribute("error.type", max(failures))  # a fault may have aborted another
            span.set_status(StatusCode.ERROR)
        span.end()


def _measured(requests: list[ActiveRequest]) -> dict[str, str | int | float]:
    """Options, counts and times of the choices; times are those of the earliest choice."""
    sequences = [request.sequence for request in requests]
    options, arrived = sequences[0].options, requests[0].arrived
    counts, stats = token_counts(sequences), Stats.pooled(one.stats for one in sequences)
    found: dict[str, str | int | float] = {
        "gen_ai.request.max_tokens": min(options.max_tokens, _LARGEST),
        "gen_ai.request.temperature": options.temperature,
        "gen_ai.request.top_p": options.top_p,
        "gen_ai.usage.input_tokens": counts.prompt,
        "gen_ai.usage.output_tokens": counts.completion,
        "trimode.mode": options.mode,
        "trimode.nfe": stats.nfe,
        "trimode.tokens_per_forward": stats.tokens_per_forward,
    }
    if len(requests) > 1:
        found["gen_ai.request.choice.count"] = len(requests)
    moments = {
        "trimode.queue_time_seconds": [one.stats.admitted_at for one in sequences],
        "trimode.time_to_first_token_seconds": [one.stats.first_token_at for one in sequences],
    }
    for name, times in moments.items():
        known = [moment for moment in times if moment is not None]
        if known:
            found[name] = min(known) - arrived
    return found


def _with_path(endpoint: str) -> str:
    """The endpoint; an address without a path gets OTLP/HTTP's path for traces."""
    parts = urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()
