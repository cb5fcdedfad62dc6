"""Metrics of rollouts in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from cytoray.serving.rollout.status import ChallengerStatus, RolloutStatus
from cytoray.tasks.messages import ModelInfo

COUNTS = ("answered", "replaced", "compared", "dropped", "failed")


class RolloutCollector:
    """Collector of versions and swaps; ``read`` returns the status of each model."""

    def __init__(self, read: Callable[[], Mapping[str, RolloutStatus]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """Read the status of each model."""
        versions = GaugeMetricFamily(
            "cytoray_model_version_info",
            "Versions that a replica has loaded.",
            labels=["model", "version", "digest", "role"],
        )
        degraded = GaugeMetricFamily(
            "cytoray_rollout_degraded", "1 while what an alias names may not be served.", labels=["model"]
        )
        swaps = CounterMetricFamily(
            "cytoray_swaps", "Attempts to change the version, by result.", labels=["model", "result"]
        )
        copies = CounterMetricFamily(
            "cytoray_challenger_requests", "Requests of a challenger, by outcome.", labels=["model", "kind"]
        )
        cosine = GaugeMetricFamily(
            "cytoray_challenger_cosine", "Mean cosine of embeddings of both versions.", labels=["model"]
        )
        labels = GaugeMetricFamily(
            "cytoray_challenger_label_agreement", "Share of cells with the same label.", labels=["model"]
        )
        for model, status in self._read().items():
            for role, info in _roles(status).items():
                versions.add_metric([model, info.version, info.digest, role], 1.0)
            degraded.add_metric([model], float(status.degraded is not None))
            for result, count in status.swaps.items():
                swaps.add_metric([model, result], count)
            if status.challenger is not None:
                _add_challenger(model, status.challenger, copies, cosine, labels)
        yield from (versions, degraded, swaps, copies, cosine, labels)


def _roles(status: RolloutStatus) -> dict[str, ModelInfo]:
    challenger = None if status.challenger is None else status.challenger.model
    roles = {"serving": status.model, "previous": status.previous, "challenger": challenger}
    return {role: model for role, model in roles.items() if model is not None}


def _add_challenger(
    model: str,
    seen: ChallengerStatus,
    copies: CounterMetricFamily,
    cosine: GaugeMetricFamily,
    labels: GaugeMetricFamily,
) -> None:
    for kind in COUNTS:
        copies.add_metric([model, kind], getattr(seen, kind))
    if seen.mean_cosine is not None:
        cosine.add_metric([model], seen.mean_cosine)
    if seen.label_agreement is not None:
        labels.add_metric([model], seen.label_agreement)
