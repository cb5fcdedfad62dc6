"""How far journals are behind MLflow, for Prometheus."""

from __future__ import annotations

from cytoray.metrics import Counter, Gauge

BEHIND = Gauge(
    "cytoray_tracking_unshipped_bytes",
    "Bytes of a run's journal that MLflow lacks after the newest attempt.",
    ("run_uuid",),
)
FAILURES = Counter("cytoray_tracking_failures", "Attempts to reach MLflow that failed.", ("run_uuid",))
LOST = Gauge(
    "cytoray_tracking_lost_events", "Events that could not be written to the journal, and are lost.", ("run_uuid",)
)
