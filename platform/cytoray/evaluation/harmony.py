"""Harmony: move the cells of several batches together in a linear embedding, cluster by cluster.

    corrected = harmonise(pca, batches=batches)

Written from Korsunsky et al. (Nature Methods 2019): soft k-means on the sphere whose penalty makes clusters diverse in
batches (block-wise updates), alternating with a ridge regression on batches within each cluster.
"""

# C cells, D dimensions, K clusters, B batches

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.errors import CorpusError
from cytoray.evaluation.inputs import code_names, finite_points

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_NUM_BLOCKS = 20  # of cells whose clusters are updated together
_WINDOW = 3  # objectives compared for convergence of the clusters
_CELLS_PER_CLUSTER = 30


@dataclass(frozen=True)
class HarmonyOptions:
    """Settings by the names of the paper; a larger ``theta`` mixes batches more."""

    theta: float = 2.0  # weight of diversity
    sigma: float = 0.1  # width of soft clusters
    ridge: float = 1.0  # lambda
    num_clusters: int | None = None  # one for 30 cells, at most 100
    max_rounds: int = 10  # of clustering and correction
    max_cluster_rounds: int = 20
    tolerance: float = 1e-4  # relative change of the objective at which rounds stop
    cluster_tolerance: float = 1e-5
    seed: int = 0


@dataclass
class _State:
    """Soft clusters and the batch diversity that follows from them."""

    points: Float64  # (C, D) on the sphere
    clusters: Float64  # (C, K), rows sum to 1
    observed: Float64  # (B, K) cells of each batch in each cluster
    expected: Float64  # (B, K) if clusters had the batches' proportions


def harmonise(
    embedding: npt.NDArray[np.floating], *, batches: Sequence[str], options: HarmonyOptions | None = None
) -> Float64:
    """Return the embedding (C, D) with batch differences removed; the same for the same seed.

    One batch is returned as it is. Raises CorpusError for cells without a batch label or with values that are not
    finite, and for settings without a meaning.
    """
    options = options or HarmonyOptions()
    if min(options.sigma, options.ridge) <= 0 or options.theta < 0:
        raise CorpusError("Harmony needs sigma and ridge above 0, theta of 0 or more.", remedy="Use the defaults.")
    original = finite_points(embedding, "embedding")
    codes, names = code_names(batches, "batch label")
    assert len(codes) == len(original), f"{len(original)} cells but {len(codes)} batch labels"
    if len(names) == 1:
        return original
    with threadpool_limits(1):  # the products are small, and on busy cores waiting for a second thread takes longer
        return _alternate(original, codes, options)


def _alternate(original: Float64, codes: Int64, options: HarmonyOptions) -> Float64:
    """Alternate clustering and correction until the objective of the clusters settles."""
    generator = np.random.default_rng(options.seed)
    members = np.eye(int(codes.max()) + 1)[codes]  # (C, B)
    state = _first_clusters(original, members, options)
    corrected, objective = original, _objective(state, _centres(state), members, options)
    for _ in range(options.max_rounds):
        previous, objective = objective, _cluster(state, codes, generator, options)
        corrected = _correct(original, state, codes, options.ridge)
        state.points = _on_sphere(corrected)
        if previous - objective < options.tolerance * abs(previous):
            break
    return corrected


def _first_clusters(original: Float64, members: Float64, options: HarmonyOptions) -> _State:
    points = _on_sphere(original)
    num_clusters = options.num_clusters or int(np.clip(round(len(points) / _CELLS_PER_CLUSTER), 1, 100))
    num_clusters = min(num_clusters, len(np.unique(points, axis=0)))
    centres = KMeans(num_clusters, n_init=10, max_iter=25, random_state=options.seed).fit(points).cluster_centers_
    clusters = _normalised(_affinities(points, _on_sphere(centres), options.sigma))
    observed = members.T @ clusters
    return _State(points, clusters, observed, np.outer(members.mean(axis=0), clusters.sum(axis=0)))


def _cluster(state: _State, codes: Int64, generator: np.random.Generator, options: HarmonyOptions) -> float:
    """Update soft clusters until the objective settles; returns the objective."""
    members = np.eye(len(state.observed))[codes]
    objectives: list[float] = []
    for _ in range(options.max_cluster_rounds):
        centres = _centres(state)
        _update_blocks(state, _affinities(state.points, centres, options.sigma), members, generator, options.theta)
        objectives.append(_objective(state, centres, members, options))
        if len(objectives) > _WINDOW + 1:
            old, new = sum(objectives[-_WINDOW - 1 : -1]), sum(objectives[-_WINDOW:])
            if abs(old - new) < options.cluster_tolerance * abs(old):
                break
    return objectives[-1]


def _update_blocks(
    state: _State, affinities: Float64, members: Float64, generator: np.random.Generator, theta: float
) -> None:
    """Assign blocks of cells anew, each by the diversity of the clusters of all other cells."""
    shares = members.mean(axis=0)
    for block in np.array_split(generator.permutation(len(members)), _NUM_BLOCKS):
        batch, old = members[block], state.clusters[block]
        state.observed -= batch.T @ old
        state.expected -= np.outer(shares, old.sum(axis=0))
        diversity = ((state.expected + 1) / (state.observed + 1)) ** theta  # (B, K)
        new = _normalised(affinities[block] * (batch @ diversity))
        state.clusters[block] = new
        state.observed += batch.T @ new
        state.expected += np.outer(shares, new.sum(axis=0))


def _correct(original: Float64, state: _State, codes: Int64, ridge: float) -> Float64:
    """Subtract from each cell the batch terms of a ridge regression within clusters, weighted by its clusters.

    Only the batch terms are shrunk. With cluster mass O_b and sum of cells S_b per batch, the intercept is the mean of
    S_b / O_b weighted by O_b ridge / (O_b + ridge), and the batch's term (S_b - O_b intercept) / (O_b + ridge).
    """
    cells_of = [np.flatnonzero(codes == batch) for batch in range(len(state.observed))]
    mass = np.stack([state.clusters[cells].sum(axis=0) for cells in cells_of])[:, :, None]  # (B, K, 1)
    sums = np.stack([state.clusters[cells].T @ original[cells] for cells in cells_of])  # (B, K, D)
    shrunk = ridge / (mass + ridge)
    intercept = (shrunk * sums).sum(axis=0) / np.maximum((shrunk * mass).sum(axis=0), np.finfo(float).tiny)  # (K, D)
    terms = (sums - mass * intercept) / (mass + ridge)
    corrected = original.copy()
    for batch, cells in enumerate(cells_of):
        corrected[cells] -= state.clusters[cells] @ terms[batch]
    return corrected


def _objective(state: _State, centres: Float64, members: Float64, options: HarmonyOptions) -> float:
    """Return distance to the centres plus entropy plus the penalty for clusters of few batches."""
    clusters = state.clusters
    distance = float((clusters * 2 * (1 - state.points @ centres.T)).sum())
    entropy = float((clusters * np.log(np.maximum(clusters, np.finfo(float).tiny))).sum())
    penalty = options.theta * np.log((state.observed + 1) / (state.expected + 1))  # (B, K)
    return distance + options.sigma * (entropy + float((clusters * (members @ penalty)).sum()))


def _centres(state: _State) -> Float64:
    return _on_sphere(state.clusters.T @ state.points)


def _affinities(points: Float64, centres: Float64, sigma: float) -> Float64:
    """Return exp(-distance / sigma) (C, K), relative to each cell's nearest centre."""
    scaled = -2 * (1 - points @ centres.T) / sigma
    return np.asarray(np.exp(scaled - scaled.max(axis=1, keepdims=True)))


def _normalised(rows: Float64) -> Float64:
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def _on_sphere(points: Float64) -> Float64:
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(np.divide(points, norms, out=np.zeros_like(points), where=norms > 0))
