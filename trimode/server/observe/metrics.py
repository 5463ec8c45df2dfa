"""Prometheus metrics of one server. Every series has the model's name as a label."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trimode.engine import Engine
from trimode.server.runtime import ActiveRequest, EndReason
from trimode.version import __version__

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SECONDS_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536)
_TOKENS_PER_FORWARD = (0.5, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 12, 16)


class ServerMetrics:
    """Counters in a registry of their own, so that two servers in one process do not mix."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self.model_name = model_name
        counter, histogram = self._counter, self._histogram
        self.requests = counter("requests", "Requests that ended.", "mode", "finish_reason")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens.")
        self.generation_tokens = counter("generation_tokens", "Completion tokens.", "mode")
        self.forward_passes = counter(
            "forward_passes",
            "Forward passes by purpose, counted once for each request in them.",
            "mode",
            "kind",
        )
        self.drafts = counter("spec_decode_drafts", "Draft-verify cycles.", "mode")
        self.draft_tokens = counter("spec_decode_draft_tokens", "Draft tokens judged.", "mode")
        self.accepted_tokens = counter(
            "spec_decode_accepted_tokens",
            "Draft tokens that were right, without the verifier's own tokens.",
            "mode",
        )
        self.accepted_per_position = counter(
            "spec_decode_accepted_tokens_per_pos",
            "Draft tokens that were right, by their position in the draft, from 0.",
            "position",
        )
        self.cache_queries = counter("prefix_cache_queries", "Prompt tokens looked up.")
        self.cache_hits = counter(
            "prefix_cache_hits", "Prompt tokens that another request had computed."
        )
        self.auto_passes = counter("auto_passes", "Passes by the plan that auto chose.", "plan")
        self.mode_switches = counter(
            "mode_switches",
            "Mode auto: changes from one plan to another.",
            "from",
            "to",
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first committed token.", _SECONDS
        )
        self.time_to_first_draft = histogram(
            "time_to_first_draft_seconds",
            "From arrival to the first draft, of requests that ask for drafts.",
            _SECONDS,
        )
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds",
            "(end - first token) / (tokens - 1), of requests that were not aborted.",
            _SECONDS_PER_TOKEN,
        )
        self.latency = histogram(
            "e2e_request_latency_seconds",
            "From arrival to the end, of requests that were not aborted.",
            _SECONDS,
        )
        self.queue_time = histogram(
            "request_queue_time_seconds", "From arrival to admission.", _SECONDS
        )
        self.request_prompt = histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self.request_generation = histogram(
            "request_generation_tokens", "Tokens of an answer.", _TOKENS
        )
        self.request_tokens_per_forward = histogram(
            "request_tokens_per_forward",
            "Completion tokens / forward passes of a request.",
            _TOKENS_PER_FORWARD,
        )

    def watch(self, engine: Engine) -> None:
        """Report the engine's queue and KV pool as gauges."""
        runner = engine.model.runner
        build = self._gauge("build_info", "1.", "version", "model", "dtype", "device")
        build.labels(
            self.model_name, __version__, engine.model.name, runner.format.name, runner.device
        ).set(1)
        gauges = {
            "requests_running": ("Being decoded.", lambda: len(engine.live)),
            "requests_waiting": ("Not yet admitted.", lambda: engine.queued),
            "kv_cache_usage_ratio": (
                "Share of the KV pool that is lent.",
                lambda: engine.pool.tokens_lent / engine.pool.max_tokens,
            ),
        }
        for name, (meaning, value) in gauges.items():
            self._gauge(name, meaning).labels(self.model_name).set_function(value)

    def finished(self, request: ActiveRequest, reason: EndReason) -> None:
        """Count a request that ended."""
        sequence, model = request.sequence, self.model_name
        mode, stats = sequence.options.mode, sequence.stats
        self.requests.labels(model, mode, reason).inc()
        self.prompt_tokens.labels(model).inc(len(sequence.prompt))
        self.generation_tokens.labels(model, mode).inc(stats.completion_tokens)
        for kind, passes in stats.passes.items():
            self.forward_passes.labels(model, mode, kind).inc(passes)
        self.drafts.labels(model, mode).inc(stats.cycles)
        self.draft_tokens.labels(model, mode).inc(stats.drafted_tokens)
        self.accepted_tokens.labels(model, mode).inc(request.accepted.total())
        for position, tokens in request.accepted.items():
            self.accepted_per_position.labels(model, position).inc(tokens)
        for plan, passes in stats.plans.items():
            self.auto_passes.labels(model, plan).inc(passes)
        for (before, after), times in request.switches.items():
            self.mode_switches.labels(model, before, after).inc(times)
        if stats.admitted_at is not None:
            self.cache_queries.labels(model).inc(len(sequence.prompt))
            self.cache_hits.labels(model).inc(stats.cached_tokens)
            self.queue_time.observe(stats.admitted_at - request.arrived)
        self._observe(request, reason)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _observe(self, request: ActiveRequest, reason: EndReason) -> None:
        """Times and sizes of one request."""
        stats, arrived = request.sequence.stats, request.arrived
        first, end = stats.first_token_at, stats.finished_at
        if first is not None:
            self.time_to_first_token.observe(first - arrived)
        if request.first_draft_at is not None:
            self.time_to_first_draft.observe(request.first_draft_at - arrived)
        if reason not in ("stop", "length") or first is None or end is None:
            return
        self.latency.observe(end - arrived)
        self.request_prompt.observe(len(request.sequence.prompt))
        self.request_generation.observe(stats.completion_tokens)
        self.request_tokens_per_forward.observe(stats.tokens_per_forward)
        if stats.completion_tokens > 1:
            per_token = (end - first) / (stats.completion_tokens - 1)
            self.time_per_output_token.observe(per_token)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        labels = ("model_name", *labels)
        return Counter(f"trimode_{name}", meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        labels = ("model_name", *labels)
        return Gauge(f"trimode_{name}", meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Any) -> Histogram:
        found = Histogram(
            f"trimode_{name}", meaning, ("model_name",), buckets=buckets, registry=self.registry
        )
        return found.labels(self.model_name)
