"""Corrections after Harmony: mutual nearest neighbours, clusters pulled apart, smoothing; and mapping of new batches.

Mutual nearest neighbours follow Haghverdi et al. (2018), all batches moving at once towards each other; a new batch is
mapped onto fixed cells as in Symphony (Kang et al. 2021).
"""

# C cells, A cells that move, N fixed cells, D dimensions, K clusters, S discriminants

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.evaluation.integration.clustering import leiden
from cytoray.evaluation.integration.neighbours import find_neighbours, row_chunks

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
MUTUAL_NEIGHBOURS = 20
FEWEST_ANCHORS = 3
KERNEL_NEIGHBOURS = 30  # anchors that reach a cell, about
SMOOTHING_NEIGHBOURS = 15
DISPLACEMENT_NEIGHBOURS = 10
CELLS_PER_CENTRE, MOST_CENTRES = 30, 100
SIGMA, RIDGE, MAPPING_ROUNDS = 0.1, 1.0, 3  # of mapping, as Harmony's
_SHRINKAGE = 0.1  # of the covariance within clusters


def align_batches(points: Float64, codes: Int64, *, rounds: int) -> Float64:
    """Move the cells (C, D) of each batch towards their mutual nearest neighbours in all others, ``rounds`` times.

    A batch moves by the share of cells that are not its own, so that large batches move little.
    """
    for _ in range(rounds):
        moved = points.copy()
        for batch in range(int(codes.max()) + 1):
            own = codes == batch
            moved[own] += (1 - own.mean()) * mutual_shift(points[own], points[~own])
        points = moved
    return points


def mutual_shift(moving: Float64, fixed: Float64) -> Float64:
    """Return for each of A cells the smoothed vector (A, D) to its mutual nearest neighbours among N fixed ones.

    Neighbours are by cosine. Zero if fewer than three cells have any.
    """
    some, others = _on_sphere(moving), _on_sphere(fixed)
    forward = _nearest(some, others, MUTUAL_NEIGHBOURS)
    backward = _nearest(others, some, min(MUTUAL_NEIGHBOURS, max(1, len(some) // 3)))
    mutual = sparse.csr_array(forward.multiply(backward.T))
    counts = np.asarray(mutual.sum(axis=1)).ravel()
    anchors = np.flatnonzero(counts)
    if len(anchors) < FEWEST_ANCHORS:
        return np.zeros_like(moving)
    vectors = (mutual[anchors] @ fixed) / counts[anchors, None] - moving[anchors]
    return _smoothed_vectors(some, some[anchors], vectors)


def cluster_discriminants(points: Float64, *, resolution: float = 1.0) -> Float64:
    """Return axes (D, S) that tell Leiden clusters of the points (C, D) apart: linear discriminant analysis."""
    graph = find_neighbours(points, num_neighbours=SMOOTHING_NEIGHBOURS).connectivities()
    clusters = leiden(graph, resolution=resolution)
    sizes = np.bincount(clusters)
    means = np.stack([points[clusters == cluster].mean(axis=0) for cluster in range(len(sizes))])
    within = _covariance(points - means[clusters])
    spread = np.trace(_covariance(points - points.mean(axis=0))) / points.shape[1]
    between = _covariance(np.repeat(means, sizes, axis=0) - points.mean(axis=0))
    regularised = within + max(_SHRINKAGE * spread, np.finfo(float).eps) * np.eye(points.shape[1])
    _, axes = linalg.eigh(between, regularised)
    num = min(len(sizes) - 1, points.shape[1])
    axes = axes[:, ::-1][:, :num]
    return np.asarray(axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(num)] < 0, -1, 1))


def smooth_cells(points: Float64, *, share: float) -> Float64:
    """Replace ``share`` of each cell (C, D) by the weighted mean of its 15 nearest cells."""
    graph = find_neighbours(points, num_neighbours=SMOOTHING_NEIGHBOURS).connectivities()
    totals = np.asarray(graph.sum(axis=1)).ravel()
    means = np.asarray(graph @ points) / np.where(totals > 0, totals, 1)[:, None]
    return np.asarray(np.where(totals[:, None] > 0, (1 - share) * points + share * means, points))


def smooth_onto(points: Float64, fixed: Float64, *, share: float) -> Float64:
    """Replace ``share`` of each cell (A, D) by the weighted mean of its nearest cells among fixed ones (N, D)."""
    distances, indices = _neighbours(points, fixed, SMOOTHING_NEIGHBOURS)
    beyond = distances - distances[:, :1]
    weights = np.exp(-beyond / np.maximum(beyond.mean(axis=1, keepdims=True), np.finfo(float).tiny))
    return (1 - share) * points + share * _weighted_means(fixed, indices, weights)


def displaced(points: Float64, before: Float64, after: Float64) -> Float64:
    """Move cells (A, D) as their nearest cells ``before`` (N, D) were moved to ``after``; one of them goes with it."""
    distances, indices = _neighbours(points, before, DISPLACEMENT_NEIGHBOURS)
    squares = distances**2
    floor = np.maximum(squares[:, -1:] * 1e-9, np.finfo(float).tiny)
    return points + _weighted_means(after - before, indices, 1 / (squares + floor))


def find_centres(points: Float64, *, seed: int = 0) -> Float64:
    """Return the centres (K, D) of k-means clusters of directions, one for 30 cells."""
    unit = _on_sphere(points)
    num = int(np.clip(round(len(points) / CELLS_PER_CENTRE), 1, MOST_CENTRES))
    num = min(num, len(np.unique(unit, axis=0)))
    with threadpool_limits(1):
        centres = KMeans(num, n_init=3, max_iter=25, random_state=seed).fit(unit).cluster_centers_
    return _on_sphere(np.asarray(centres, np.float64))


def map_batch(points: Float64, fixed: Float64, centres: Float64) -> Float64:
    """Map the cells (A, D) of a new batch onto fixed ones (N, D), cluster by cluster and then by mutual neighbours."""
    of_fixed = _soft_clusters(fixed, centres)  # (N, K)
    means = (of_fixed.T @ fixed) / np.maximum(of_fixed.sum(axis=0), np.finfo(float).tiny)[:, None]
    mapped = points
    for _ in range(MAPPING_ROUNDS):
        clusters = _soft_clusters(mapped, centres)
        mass = clusters.sum(axis=0)[:, None]
        terms = (clusters.T @ points - mass * means) / (mass + RIDGE)
        mapped = points - clusters @ terms
    return mapped


def _soft_clusters(points: Float64, centres: Float64) -> Float64:
    scaled = 2 * (_on_sphere(points) @ centres.T - 1) / SIGMA
    weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def _smoothed_vectors(cells: Float64, anchors: Float64, vectors: Float64) -> Float64:
    """Return means of the anchors' vectors by a Gaussian kernel, as wide as the reach of about 30 anchors."""
    near = min(KERNEL_NEIGHBOURS, len(anchors))
    reach, _ = _neighbours(cells, anchors, near)
    width = max(float(np.median(reach[:, -1] ** 2)) / 2, np.finfo(float).tiny)
    found = np.empty_like(cells)
    for rows in row_chunks(len(cells), bytes_per_row=8 * len(anchors)):
        squares = np.maximum(2 - 2 * cells[rows] @ anchors.T, 0)
        weights = np.exp(-(squares - squares.min(axis=1, keepdims=True)) / width)
        found[rows] = weights @ vectors / weights.sum(axis=1, keepdims=True)
    return found


def _neighbours(points: Float64, fixed: Float64, num: int) -> tuple[Float64, Int64]:
    search = NearestNeighbors(n_neighbors=min(num, len(fixed)), algorithm="brute").fit(fixed)
    distances, indices = search.kneighbors(points)
    return np.asarray(distances, np.float64), np.asarray(indices, np.int64)


def _nearest(points: Float64, targets: Float64, num: int) -> sparse.csr_array:
    search = NearestNeighbors(n_neighbors=min(num, len(targets)), algorithm="brute").fit(targets)
    return sparse.csr_array(search.kneighbors_graph(points))


def _weighted_means(values: Float64, indices: Int64, weights: Float64) -> Float64:
    return np.asarray(np.einsum("ck,ckd->cd", weights, values[indices]) / weights.sum(axis=1, keepdims=True))


def _covariance(centred: Float64) -> Float64:
    return np.asarray(centred.T @ centred / len(centred))


def _on_sphere(points: Float64) -> Float64:
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(np.divide(points, norms, out=np.zeros_like(points), where=norms > 0))
