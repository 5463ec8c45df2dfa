"""What whoever runs the server can see: logs, Prometheus metrics, OpenTelemetry spans."""

from trimode.server.observe.logs import IgnoredFields, RequestLog, log_to
from trimode.server.observe.metrics import ServerMetrics
from trimode.server.observe.telemetry import RequestSpan, Tracing, check_endpoint

__all__ = [
    "IgnoredFields",
    "RequestLog",
    "RequestSpan",
    "ServerMetrics",
    "Tracing",
    "check_endpoint",
    "log_to",
]
