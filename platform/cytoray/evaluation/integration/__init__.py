"""How well experimental batches were brought together, and whether biology survived it.

    scores = score_integration(corrected, batches=batches, labels=cell_types, before=uncorrected)
    scores.total, scores.avg_bio, scores.reasons

The definitions are those of scib-metrics 0.5.10, computed with exact neighbours
(``tests/evaluation/make_scib_numbers.py`` compares them). Labels only ever score; `selection` chooses among embeddings
without them.
"""

from cytoray.evaluation.integration.overlap import NeighbourOverlap, neighbour_overlap
from cytoray.evaluation.integration.scores import (
    IntegrationOptions,
    IntegrationScores,
    LabelIntegration,
    score_integration,
)
from cytoray.evaluation.integration.selection import (
    BatchClusters,
    SelectionScore,
    cluster_batches,
    select_without_labels,
)

__all__ = [
    "BatchClusters",
    "IntegrationOptions",
    "IntegrationScores",
    "LabelIntegration",
    "NeighbourOverlap",
    "SelectionScore",
    "cluster_batches",
    "neighbour_overlap",
    "score_integration",
    "select_without_labels",
]
