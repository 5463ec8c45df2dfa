"""A server's metrics as Ray exports them: beside those of all replicas, each with its labels.

`/metrics` through Ray's proxy is that of one replica, whichever it asks.
"""

from prometheus_client import CollectorRegistry
from ray.util.metrics import Counter, Gauge  # type: ignore[import-not-found]

_Series = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and labels."""


class RayMetrics:
    """Copies a registry into Ray's metrics.

    A histogram becomes three counters, as it is to Prometheus: `_bucket`, `_sum` and `_count`. Ray
    adds `ray_` before each name and `_total` after a counter's.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._metrics: dict[str, Counter | Gauge] = {}
        self._before: dict[_Series, float] = {}

    def update(self) -> None:
        """Copy what the registry has now."""
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name.endswith("_created"):
                    continue
                name, labels = sample.name.removesuffix("_total"), sample.labels
                kind = Gauge if family.type == "gauge" else Counter
                metric = self._metrics.get(name)
                if metric is None:
                    metric = kind(name, family.documentation, tuple(labels))
                    self._metrics[name] = metric
                if isinstance(metric, Gauge):
                    metric.set(sample.value, dict(labels))
                    continue
                series = name, tuple(labels.items())
                grown = sample.value - self._before.get(series, 0.0)
                if grown > 0:
                    metric.inc(grown, dict(labels))
                self._before[series] = sample.value
