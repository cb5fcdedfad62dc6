"""Metrics of the service in Prometheus' format, of all its processes.

prometheus_client counts in each process; a request for /metrics collects from the other replicas and HTTP servers and
marks each sample with its process. Ray's metrics API would name them ray_…, and needs Ray's agent to be scraped on each
node; a sum over replicas made here would fall, and look like a restart, whenever a replica ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class ProcessMetrics:
    """The metrics of one process, which may come from another one."""

    process: str
    families: tuple[Metric, ...]


Gather = Callable[[], Awaitable[list[ProcessMetrics]]]
#: The metrics of this process; another one collects them with ``collect``.
REGISTRY = CollectorRegistry()


class EdgeMetrics:
    """Requests as the edge sees them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            """Make a counter."""
            return Counter(f"cytoray_{name}", text, labels, registry=registry)

        self.requests = counter("requests", "Requests answered, by route and HTTP status.", "route", "status")
        self.rejections = counter("rejections", "Requests answered with a problem, by its code.", "code")
        self.cells = counter("cells", "Cells answered.", "route")
        self.bytes_in = counter("request_bytes", "Bytes of request bodies.")
        self.bytes_out = counter("response_bytes", "Bytes of response bodies.")
        self.retries = counter("retries", "Requests that were sent to another replica, by reason.", "reason")
        self.seconds = Histogram(
            "cytoray_request_seconds",
            "Time from the head of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("cytoray_requests_in_flight", "Requests being answered.", registry=registry)
        self.draining = Gauge("cytoray_draining", "1 while the service is being stopped.", registry=registry)


class Figures(Protocol):
    """Figures that are kept elsewhere: counters, and gauges of this moment."""

    @property
    def gauges(self) -> Callable[[], Mapping[str, float]]:
        """The gauges by name."""

    def snapshot(self) -> Mapping[str, float]:
        """Return counters and gauges by name; names of seconds end in _s."""


class FiguresCollector:
    """Collector of figures, as ``cytoray_PREFIX_NAME``."""

    def __init__(self, prefix: str, figures: Figures) -> None:
        self._prefix = prefix
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Read the figures."""
        gauges = self._figures.gauges()
        for name, value in self._figures.snapshot().items():
            family = GaugeMetricFamily if name in gauges else CounterMetricFamily
            full = f"cytoray_{self._prefix}_{name.removesuffix('_s')}{'_seconds' if name.endswith('_s') else ''}"
            yield family(full, f"{name} of the {self._prefix} of a replica.", value=value)


class InfoCollector:
    """Collector of the identity of the model and the version of the code; ``read`` returns the labels."""

    def __init__(self, read: Callable[[], Mapping[str, str]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Return one sample of 1 with the labels."""
        labels = self._read()
        family = GaugeMetricFamily("cytoray_build_info", "Model and code of a replica.", labels=list(labels))
        family.add_metric(list(labels.values()), 1.0)
        yield family


def collect(registry: CollectorRegistry, *, process: str) -> ProcessMetrics:
    """Return what a registry counts, as data that can be sent to another process."""
    return ProcessMetrics(process, tuple(registry.collect()))


def render(processes: Iterable[ProcessMetrics]) -> bytes:
    """Write the metrics of processes as text for Prometheus, each sample with the label ``process``."""
    families: dict[str, Metric] = {}
    for one in processes:
        for family in one.families:
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples += [_labelled(sample, one.process) for sample in family.samples]
    return bytes(generate_latest(_Merged(families.values())))


def _labelled(sample: Sample, process: str) -> Sample:
    return sample._replace(labels={**sample.labels, "process": process})


class _Merged(CollectorRegistry):
    """Families that have been collected already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """Return the families."""
        return iter(self._families)
