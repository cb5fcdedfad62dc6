"""Metrics of jobs: counted in the process that does the work, exported by Ray on every node for Prometheus.

Without a Ray that this process is connected to nothing is counted, and Ray is not imported. The service counts for
itself (``serving/edge/metrics.py``), since its figures have to be read through its own port.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any

PREFIX = "ray_"  # that Ray puts before the names of all metrics


@dataclass(frozen=True)
class Counter:
    """Something that only grows, since the process began."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Name in Prometheus."""
        return f"{PREFIX}{self.name}_total"

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Count ``amount`` more; zero is ignored, as Ray's counters refuse it."""
        if amount and (session := _session()):
            _made(self, session).inc(float(amount), tags=labels)


@dataclass(frozen=True)
class Gauge:
    """The newest value of something; Ray forgets it soon after the process has ended."""

    name: str
    description: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Name in Prometheus."""
        return f"{PREFIX}{self.name}"

    def set(self, value: float, **labels: str) -> None:
        """Replace the value."""
        if session := _session():
            _made(self, session).set(float(value), tags=labels)


def _session() -> str:
    """Identify the Ray that this process is connected to; empty without one."""
    ray = sys.modules.get("ray")
    if ray is None or not getattr(ray, "is_initialized", bool)():
        return ""
    return str(ray.get_runtime_context().get_job_id())


@functools.lru_cache(maxsize=256)
def _made(metric: Counter | Gauge, _session_id: str) -> Any:
    """Ray's metric of this name, made once per connection."""
    from ray.util import metrics

    kind = metrics.Counter if isinstance(metric, Counter) else metrics.Gauge
    return kind(metric.name, description=metric.description, tag_keys=metric.labels)
