"""Metrics of the service in Prometheus' format, of all its processes.

prometheus_client counts in each process; a request for /metrics collects from the other replicas and HTTP servers and
marks each sample with its process. Ray's metrics API would name them ray_…, and needs Ray's agent to be scraped on each
node; a sum over replicas made here would fall, and look like a restart, whenever a replica ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
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
        self.cells = counter("cells", "Cells answered, by route and model.", "route", "model")
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
    """Collector of the figures of models, as ``cytoray_PREFIX_NAME`` with the label ``model``.

    ``read`` returns the figures of this moment by model.
    """

    def __init__(self, prefix: str, read: Callable[[], Mapping[str, Figures]]) -> None:
        self._prefix = prefix
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Read the figures."""
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for model, figures in self._read().items():
            gauges = figures.gauges()
            for name, value in figures.snapshot().items():
                if name not in families:
                    family = GaugeMetricFamily if name in gauges else CounterMetricFamily
                    families[name] = family(self._name(name), f"{name} of a {self._prefix}.", labels=["model"])
                families[name].add_metric([model], value)
        yield from families.values()

    def _name(self, name: str) -> str:
        return f"cytoray_{self._prefix}_{name.removesuffix('_s')}{'_seconds' if name.endswith('_s') else ''}"


class InfoCollector:
    """Collector of the identity of models and the version of the code; ``read`` returns the labels of each model."""

    def __init__(self, read: Callable[[], Sequence[Mapping[str, str]]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Return a sample of 1 for each model."""
        found = self._read()
        names = list(found[0]) if found else []
        family = GaugeMetricFamily("cytoray_build_info", "Models and code of a replica.", labels=names)
        for labels in found:
            family.add_metric([labels[name] for name in names], 1.0)
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
