"""From sums and gauges to what a scrape gets: the Prometheus text format, or OpenMetrics with exemplars.

The prometheus-client package writes the formats; here a collector hands it the families of the table, which are made anew
from the sums with every scrape. So no Counter object has to be kept in step with them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import Metric as Family
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from actors.events import BOUNDS_S, PER_MICRO, Distribution, Key
from actors.observer.metrics import METRICS, Metric

__all__ = ["Families", "exposed", "families"]

Bucket = tuple[str, float] | tuple[str, float, Exemplar]

MICROS = 1e6
LES = (*(f"{bound:g}" for bound in BOUNDS_S), "+Inf")


def exposed(collect: Callable[[], Iterable[Family]], accept: str) -> tuple[bytes, str]:
    """The body of a scrape and its content type, by what the scraper accepts."""
    encode, content_type = choose_encoder(accept)
    return encode(Families(collect)), content_type


class Families(Collector):
    """What prometheus-client calls a collector, and an encoder takes for a registry."""

    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Family]:
        return self._collect()


def families(
    counters: Mapping[Key, int], distributions: Mapping[Key, Distribution], gauges: Mapping[Key, float]
) -> Iterator[Family]:
    """All metrics of the table, in its order; what is not in the table is not served."""
    values: dict[str, list[Key]] = {}
    for key in (*counters, *distributions, *gauges):
        values.setdefault(key[0], []).append(key)
    for metric in METRICS:
        keys = sorted(values.get(metric.key, ()))
        match metric.kind:
            case "counter":
                counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
                if not metric.labels and not keys:
                    counter.add_metric((), 0)  # what has never happened is nought, not unknown
                for key in keys:
                    counter.add_metric(key[1:], _scaled(counters[key], metric))
                yield counter
            case "gauge":
                gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                for key in keys:
                    gauge.add_metric(key[1:], _scaled(gauges[key], metric))
                yield gauge
            case "histogram":
                histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
                for key in keys:
                    histogram.add_metric(key[1:], _buckets(distributions[key]), distributions[key].sum_us / PER_MICRO)
                yield histogram


def _scaled(value: float, metric: Metric) -> float:
    # a division, since 0.3 is 300000 / 1e6 and not 300000 * 1e-6
    return value / MICROS if metric.unit == "dollars" else value


def _buckets(distribution: Distribution) -> list[Bucket]:
    below = 0
    buckets: list[Bucket] = []
    for le, count, exemplar in zip(LES, distribution.counts, distribution.exemplars, strict=True):
        below += count
        if exemplar is None:
            buckets.append((le, below))
        else:
            request_id, seconds = exemplar
            buckets.append((le, below, Exemplar({"request_id": request_id}, seconds)))
    return buckets
