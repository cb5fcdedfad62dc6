"""Choose among integrated embeddings without cell types, so that labels can judge the choice afterwards.

    clusters = cluster_batches(pca, batches=batches)
    for candidate in candidates:
        select_without_labels(candidate, uncorrected=pca, batches=batches, clusters=clusters).score

Clusters found within each batch stand in for cell types: no batch effect has formed them. A good correction keeps
neighbourhoods and clusters within each batch (bio) and brings clusters of different batches that are mutual nearest
neighbours onto each other (batch). The score, 0.6 bio + 0.4 batch, ranks candidates for the same cells; it estimates
nothing, and its value means nothing beside the value for other cells. Compare all candidates with the same uncorrected
embedding: an embedding compared with itself has an overlap of 1.
"""

# C cells, D dimensions, N clusters of all batches

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from cytoray.evaluation.inputs import code_names, finite_points
from cytoray.evaluation.integration.cells import FEWEST_NEIGHBOURS, NUM_NEIGHBOURS
from cytoray.evaluation.integration.clustering import leiden
from cytoray.evaluation.integration.mixing import median_lisi
from cytoray.evaluation.integration.neighbours import Float64, Int64, find_neighbours
from cytoray.evaluation.integration.overlap import NeighbourOverlap, neighbour_overlap
from cytoray.evaluation.integration.silhouettes import batch_silhouettes, silhouettes

BIO_WEIGHT, BATCH_WEIGHT = 0.6, 0.4
_LEIDEN_NEIGHBOURS = 15
_MUTUAL_NEIGHBOURS = 20


@dataclass(frozen=True, eq=False)
class BatchClusters:
    """Leiden clusters within each batch of an uncorrected embedding, and those matched between batches."""

    within: Int64  # (C,) clusters of all batches, 0 ... N - 1
    matched: Int64  # (C,) the same number for clusters of different batches that are mutual nearest neighbours


@dataclass(frozen=True)
class SelectionScore:
    """Parts of the label-free score, each in [0, 1] with 1 best; None for a part without a meaning."""

    overlap: NeighbourOverlap  # of neighbourhoods within batches with the uncorrected embedding
    silhouette: float | None  # of clusters within batches
    ilisi: float | None
    bras: float | None  # of batches within matched clusters

    @property
    def bio(self) -> float | None:
        """Mean of overlap and silhouette."""
        return _mean(self.overlap.mean, self.silhouette)

    @property
    def batch(self) -> float | None:
        """Mean of iLISI and BRAS; None for cells of one batch."""
        return _mean(self.ilisi, self.bras)

    @property
    def score(self) -> float | None:
        """0.6 bio + 0.4 batch; None if either is."""
        bio, batch = self.bio, self.batch
        return None if bio is None or batch is None else BIO_WEIGHT * bio + BATCH_WEIGHT * batch

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dictionaries, strings and numbers, ready for ``json.dumps``."""
        parts = {"silhouette": self.silhouette, "ilisi": self.ilisi, "bras": self.bras}
        return {"score": self.score, "bio": self.bio, "batch": self.batch, **parts, "overlap": self.overlap.to_dict()}


def cluster_batches(
    uncorrected: npt.NDArray[np.floating], *, batches: Sequence[str], resolution: float = 1.0
) -> BatchClusters:
    """Cluster each batch of the uncorrected embedding (C, D) by itself, and match the clusters between batches.

    Two clusters of two batches match if each shares most mutual nearest neighbours (20, cosine) with the other, for
    their sizes.
    """
    points = finite_points(uncorrected, "uncorrected embedding")
    codes, names = code_names(batches, "batch label")
    assert len(points) == len(codes), f"{len(points)} cells but {len(codes)} batch labels"
    within = np.zeros(len(codes), np.int64)
    num_clusters = 0
    for batch in range(len(names)):
        cells = np.flatnonzero(codes == batch)
        within[cells] = num_clusters + _clusters(points[cells], resolution)
        num_clusters = int(within[cells].max()) + 1
    links = _mutual_links(points, codes, within)
    _, matched = connected_components(_mutual_best(links, _batch_of_cluster(within, codes)), directed=False)
    return BatchClusters(within, matched[within].astype(np.int64))


def select_without_labels(
    embedding: npt.NDArray[np.floating],
    *,
    uncorrected: npt.NDArray[np.floating],
    batches: Sequence[str],
    clusters: BatchClusters,
) -> SelectionScore:
    """Score a candidate ``embedding`` (C, D') by what is known without cell types; the module says how to use it."""
    points = finite_points(embedding, "embedding")
    overlap = neighbour_overlap(uncorrected, points, batches=batches)
    codes, names = code_names(batches, "batch label")
    ilisi = bras = None
    if len(names) > 1 and len(points) >= FEWEST_NEIGHBOURS:
        neighbours = find_neighbours(points, num_neighbours=NUM_NEIGHBOURS)
        ilisi = (median_lisi(neighbours, codes) - 1) / (len(names) - 1)
        each = batch_silhouettes(points, clusters.matched, codes, metric="cosine", between="mean_other")
        bras = None if np.isnan(each).all() else float(np.nanmean(each))
    return SelectionScore(overlap, _silhouette_within(points, codes, clusters.within), ilisi, bras)


def _clusters(points: Float64, resolution: float) -> Int64:
    if len(points) < FEWEST_NEIGHBOURS:
        return np.zeros(len(points), np.int64)
    graph = find_neighbours(points, num_neighbours=_LEIDEN_NEIGHBOURS).connectivities()
    return leiden(graph, resolution=resolution)


def _batch_of_cluster(within: Int64, codes: Int64) -> Int64:
    found = np.zeros(int(within.max()) + 1, np.int64)
    found[within] = codes
    return found


def _mutual_links(points: Float64, codes: Int64, within: Int64) -> Float64:
    """Return mutual nearest neighbours between clusters of two batches (N, N), over the root of both their sizes."""
    centred = points - points.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    num_clusters = int(within.max()) + 1
    links = np.zeros((num_clusters, num_clusters), np.int64)
    for one, other in combinations(range(int(codes.max()) + 1), 2):
        some, others = np.flatnonzero(codes == one), np.flatnonzero(codes == other)
        mutual = _nearest(unit[some], unit[others]).multiply(_nearest(unit[others], unit[some]).T).tocoo()
        np.add.at(links, (within[some[mutual.row]], within[others[mutual.col]]), 1)
    sizes = np.bincount(within)
    return np.asarray((links + links.T) / np.sqrt(np.outer(sizes, sizes)))


def _nearest(points: Float64, targets: Float64) -> sparse.csr_array:
    num = min(_MUTUAL_NEIGHBOURS, len(targets))
    search = NearestNeighbors(n_neighbors=num, algorithm="brute").fit(targets)
    return sparse.csr_array(search.kneighbors_graph(points))


def _mutual_best(links: Float64, batch_of: Int64) -> sparse.csr_array:
    """Return the graph (N, N) of clusters that are each other's best in one another's batch."""
    num_batches = int(batch_of.max()) + 1
    best = np.full((len(links), num_batches), -1)
    for batch in range(num_batches):
        members = np.flatnonzero(batch_of == batch)
        linked = links[:, members].max(axis=1) > 0
        best[linked, batch] = members[links[linked][:, members].argmax(axis=1)]
    sources, batches = np.nonzero(best >= 0)
    targets = best[sources, batches]
    mutual = best[targets, batch_of[sources]] == sources
    edges = (np.ones(int(mutual.sum())), (sources[mutual], targets[mutual]))
    return sparse.csr_array(edges, shape=links.shape)


def _silhouette_within(points: Float64, codes: Int64, within: Int64) -> float | None:
    """Return the mean over cells of (s + 1) / 2, s being silhouettes among the clusters of the cell's batch."""
    found = []
    for batch in range(int(codes.max()) + 1):
        cells = np.flatnonzero(codes == batch)
        names, groups = np.unique(within[cells], return_inverse=True)
        if 1 < len(names) < len(cells):
            found.append((silhouettes(points[cells], groups) + 1) / 2)
    return float(np.concatenate(found).mean()) if found else None


def _mean(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return float(np.mean(known)) if known else None
