"""Prometheus metrics of one server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trimode import __version__
from trimode.engine import Engine, Sequence

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """Counters in a registry of their own, so that two servers in one process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "trimode_requests",
            "Requests that ended.",
            ("mode", "finish_reason"),
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "trimode_prompt_tokens", "Prompt tokens.", registry=self.registry
        )
        self.generation_tokens = Counter(
            "trimode_generation_tokens", "Completion tokens.", ("mode",), registry=self.registry
        )
        self.forward_passes = Counter(
            "trimode_forward_passes",
            "Forward passes, counted once for each request in them.",
            ("mode",),
            registry=self.registry,
        )
        self.drafted_tokens = Counter(
            "trimode_draft_tokens", "Draft tokens judged.", ("mode",), registry=self.registry
        )
        self.drafts = Counter(
            "trimode_spec_decode_drafts", "Draft-verify cycles.", ("mode",), registry=self.registry
        )
        self.accepted_tokens = Counter(
            "trimode_spec_decode_accepted_tokens",
            "Tokens that draft-verify cycles committed, the verifier's own included.",
            ("mode",),
            registry=self.registry,
        )
        self.auto_passes = Counter(
            "trimode_auto_passes", "Passes by what auto chose.", ("plan",), registry=self.registry
        )
        self.cached_tokens = Counter(
            "trimode_prefix_cache_hits",
            "Prompt tokens that another request had computed.",
            registry=self.registry,
        )
        self.time_to_first_token = Histogram(
            "trimode_time_to_first_token_seconds",
            "From admission to the first committed token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "trimode_request_duration_seconds",
            "From admission to the end.",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def watch(self, engine: Engine) -> None:
        """Report the engine's queue as gauges."""
        build = Gauge(
            "trimode_build_info", "1.", ("version", "model", "dtype"), registry=self.registry
        )
        model = engine.model
        build.labels(__version__, model.name, model.transformer.kernel).set(1)
        running = Gauge("trimode_requests_running", "Being decoded.", registry=self.registry)
        running.set_function(lambda: len(engine.live))
        waiting = Gauge("trimode_requests_waiting", "Not yet admitted.", registry=self.registry)
        waiting.set_function(lambda: len(engine.waiting))
        cache = Gauge("trimode_kv_cache_usage_ratio", "KV pool lent.", registry=self.registry)
        cache.set_function(lambda: engine.pool.tokens_lent / engine.pool.max_tokens)

    def finished(self, sequence: Sequence) -> None:
        """Count a request that ended."""
        mode, stats = sequence.options.mode, sequence.stats
        self.requests.labels(mode, sequence.finish_reason).inc()
        self.prompt_tokens.inc(len(sequence.prompt))
        self.generation_tokens.labels(mode).inc(stats.completion_tokens)
        self.forward_passes.labels(mode).inc(stats.nfe)
        self.drafted_tokens.labels(mode).inc(stats.drafted_tokens)
        self.drafts.labels(mode).inc(stats.cycles)
        self.accepted_tokens.labels(mode).inc(stats.cycle_tokens)
        self.cached_tokens.inc(stats.cached_tokens)
        for plan, passes in stats.plans.items():
            self.auto_passes.labels(plan).inc(passes)
        if stats.time_to_first_token is not None:
            self.time_to_first_token.observe(stats.time_to_first_token)
            self.duration.observe(stats.seconds)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
