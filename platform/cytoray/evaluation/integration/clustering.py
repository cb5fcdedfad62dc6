"""Do clusters of an embedding agree with cell types? k-means, Leiden, NMI and ARI."""

# C cells, D dimensions

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import igraph
import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.evaluation.integration.neighbours import Int64

RESOLUTIONS = tuple(round(0.2 * step, 1) for step in range(1, 11))  # of scib-metrics; scib has 0.1, 0.2 ... 2.0
LEIDEN_SEED = 42


class Agreement(NamedTuple):
    """Normalised mutual information (arithmetic) and adjusted Rand index of clusters and labels."""

    nmi: float
    ari: float


def kmeans_agreement(
    points: npt.NDArray[np.floating], labels: Int64, *, seed: int = 0, num_starts: int = 10
) -> Agreement:
    """Compare ``labels`` with k-means clusters, as many as there are labels; the best of ``num_starts`` starts."""
    values = np.asarray(points, np.float64)
    num_clusters = min(int(labels.max()) + 1, len(np.unique(values, axis=0)))
    with threadpool_limits(1):  # steps are short: on busy cores, waiting for a second thread takes longer
        clusters = KMeans(num_clusters, n_init=num_starts, random_state=seed).fit_predict(values)
    return _agreement(labels, clusters)


def leiden_agreement(
    graph: sparse.csr_array, labels: Int64, *, resolutions: Sequence[float] = RESOLUTIONS, seed: int = LEIDEN_SEED
) -> Agreement:
    """Compare ``labels`` with Leiden clusters at the resolution of best NMI; ARI is that of the same resolution."""
    found = [_agreement(labels, leiden(graph, resolution=resolution, seed=seed)) for resolution in resolutions]
    return max(found, key=lambda agreement: agreement.nmi)  # of equals, the first


def leiden(graph: sparse.csr_array, *, resolution: float = 1.0, seed: int = LEIDEN_SEED) -> Int64:
    """Return Leiden clusters (C,) of an undirected weighted graph (C, C), by modularity; the same for the same seed."""
    edges = graph.tocoo()
    network = igraph.Graph(
        n=graph.shape[0], edges=np.column_stack([edges.row, edges.col])
    )  # both directions, as scanpy
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = network.community_leiden(
            objective_function="modularity", weights=edges.data.astype(float).tolist(), resolution=resolution
        )
    finally:
        igraph.set_random_number_generator(random)  # igraph's own default
    return np.asarray(found.membership, np.int64)


def _agreement(labels: Int64, clusters: Int64) -> Agreement:
    nmi = normalized_mutual_info_score(labels, clusters, average_method="arithmetic")
    return Agreement(float(nmi), float(adjusted_rand_score(labels, clusters)))
