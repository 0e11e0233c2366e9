"""What a scrape is answered with, in the forms of ``prometheus_client``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from celery_allocator.metrics.gauges import about, gauges
from celery_allocator.metrics.looking import Look
from celery_allocator.metrics.recorded import Recorded
from celery_allocator.metrics.table import COUNTER, HISTOGRAM, METRICS, Metric
from celery_allocator.metrics.tallies import Distribution, Tallies
from celery_allocator.metrics.value import Value


class PoolCollector(Collector):
    """Of one pool. ``look``: a fresh look, or ``None`` if the ledger is away; ``recorded``: the recorder's state."""

    def __init__(
        self,
        pool: str,
        tallies: Tallies,
        look: Callable[[], Look | None],
        recorded: Callable[[], Recorded | None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._tallies = tallies
        self._look = look
        self._recorded = recorded

    def collect(self) -> Iterable[Family]:
        """Every metric that has a value."""
        seen = self._look()
        values: dict[str, list[Value]] = defaultdict(list)
        for value in about(self._pool, up=seen is not None):
            values[value.name].append(value)
        if seen is not None:
            for value in gauges(seen, self._recorded()):
                values[value.name].append(value)
        with self._tallies.together():
            counters, distributions = self._tallies.counters(), self._tallies.distributions()
        for metric in METRICS.values():
            if metric.type == COUNTER:
                if counters[metric.name] or not metric.elsewhere:
                    yield _counter(metric, counters[metric.name])
            elif metric.type == HISTOGRAM:
                yield _histogram(metric, distributions[metric.name])
            elif metric.name in values:
                yield _gauge(metric, values[metric.name])


def _gauge(metric: Metric, values: Iterable[Value]) -> Family:
    family = GaugeMetricFamily(metric.full_name, metric.doc, labels=metric.labels)
    for value in values:
        family.add_metric(value.labels, value.value)
    return family


def _counter(metric: Metric, series: dict[tuple[str, ...], float]) -> Family:
    family = CounterMetricFamily(metric.full_name.removesuffix("_total"), metric.doc, labels=metric.labels)
    for labels, value in sorted(series.items()):
        family.add_metric(labels, value)
    return family


def _histogram(metric: Metric, distribution: Distribution) -> Family:
    family = HistogramMetricFamily(metric.full_name, metric.doc, labels=())
    buckets, so_far = [], 0
    for bound, count in zip((*map(float, distribution.bounds), "+Inf"), distribution.counts, strict=True):
        so_far += count
        buckets.append((str(bound), float(so_far)))
    family.add_metric((), buckets, distribution.total)
    return family
