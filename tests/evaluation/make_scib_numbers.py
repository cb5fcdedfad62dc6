"""Compute what scib-metrics 0.5.10 says of the seeded embeddings, for tests that run without it (and without jax).

    python -m venv oracle && oracle/bin/pip install scib-metrics==0.5.10
    oracle/bin/python tests/evaluation/make_scib_numbers.py [CASE ...]  # all without a name

Neighbours are exact, as for ours. k-means is the best of ten starts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from scib_metrics.utils import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from integration_cases import PBMC, SYNTHETIC, Case, pbmc

NUMBERS = Path(__file__).with_name("scib_numbers.json")


def scib_numbers(case: Case) -> dict[str, float]:
    """Return all metrics by our names, computed by scib-metrics."""
    points, labels, batches = case.embedding, case.labels, case.batches
    neighbours = exact_neighbours(points, 90)
    kmeans = KMeans(len(np.unique(labels)), n_init=10).fit(points).labels_
    leiden = scib_metrics.nmi_ari_cluster_labels_leiden(neighbours.subset_neighbors(15), labels)
    found = {
        "nmi_kmeans": normalized_mutual_info_score(labels, kmeans),
        "ari_kmeans": adjusted_rand_score(labels, kmeans),
        "nmi_leiden": leiden["nmi"],
        "ari_leiden": leiden["ari"],
        "asw_label": scib_metrics.silhouette_label(points, labels),
        "isolated_labels": scib_metrics.isolated_labels(points, labels, batches),
        "clisi": scib_metrics.clisi_knn(neighbours, labels),
        "bras": scib_metrics.bras(points, labels, batches),
        "asw_batch": scib_metrics.silhouette_batch(points, labels, batches),
        "ilisi": scib_metrics.ilisi_knn(neighbours, batches),
        "kbet": scib_metrics.kbet_per_label(neighbours.subset_neighbors(50), batches, labels),
        "graph_connectivity": scib_metrics.graph_connectivity(neighbours.subset_neighbors(15), labels),
        "pcr_comparison": scib_metrics.pcr_comparison(case.before, points, batches, categorical=True),
    }
    return {name: float(value) for name, value in found.items()}


def exact_neighbours(points: np.ndarray, num_neighbours: int) -> NeighborsResults:
    """Return exact neighbours, every cell being its own first."""
    search = NearestNeighbors(n_neighbors=num_neighbours, algorithm="kd_tree").fit(points)  # without cancellation
    distances, indices = search.kneighbors(points)
    for cell in range(len(points)):  # of cells on top of each other, any may come first
        place = np.flatnonzero(indices[cell] == cell)
        indices[cell, place[0] if len(place) else -1] = indices[cell, 0]
        indices[cell, 0] = cell
    return NeighborsResults(indices=indices, distances=distances.astype(np.float32))


if __name__ == "__main__":
    cases = SYNTHETIC | ({"pbmc": pbmc} if PBMC.exists() else {})
    numbers = json.loads(NUMBERS.read_text())["numbers"] if NUMBERS.exists() else {}
    for name in sys.argv[1:] or cases:
        numbers[name] = scib_numbers(cases[name]())
    NUMBERS.write_text(json.dumps({"scib_metrics": scib_metrics.__version__, "numbers": numbers}, indent=1) + "\n")
