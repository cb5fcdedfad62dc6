"""Progress of an ingest for Prometheus, counted by its driver."""

from __future__ import annotations

from cytoray.corpus.ingesting.planning import IngestPlan
from cytoray.metrics import Counter, Gauge

_CORPUS = ("corpus",)
RUNNING = Gauge("cytoray_ingest_running", "1 while an ingest works on this corpus, 0 once it has ended.", _CORPUS)
PLANNED = Gauge("cytoray_ingest_planned_cells", "Cells of the sources of the running ingest.", _CORPUS)
CELLS = Counter(
    "cytoray_ingest_cells", "Cells read from sources (read) or written to shards (write).", (*_CORPUS, "stage")
)
QUARANTINED = Gauge("cytoray_ingest_quarantined_sources", "Sources that the newest ingest left out.", _CORPUS)


def note_start(plan: IngestPlan) -> None:
    """Note that the sources of ``plan`` are about to be read."""
    RUNNING.set(1, corpus=plan.config.corpus)
    PLANNED.set(plan.num_cells, corpus=plan.config.corpus)
    QUARANTINED.set(len(plan.quarantined), corpus=plan.config.corpus)


def note_cells(plan: IngestPlan, stage: str, num_cells: int) -> None:
    """Count cells of one stage, ``read`` or ``write``."""
    CELLS.add(num_cells, corpus=plan.config.corpus, stage=stage)


def note_quarantined(plan: IngestPlan, num_sources: int) -> None:
    """Note how many sources were left out."""
    QUARANTINED.set(num_sources, corpus=plan.config.corpus)


def note_end(plan: IngestPlan) -> None:
    """Note that this ingest has ended, whatever came of it."""
    RUNNING.set(0, corpus=plan.config.corpus)
