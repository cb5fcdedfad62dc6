"""Silhouettes in bounded memory: of cell types (high is good) and of batches within a cell type (near zero is good)."""

# C cells, D dimensions, G groups, L labels

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.integration.neighbours import Float64, Int64, row_chunks

Metric = Literal["euclidean", "cosine"]
Between = Literal["nearest", "mean_other"]


def silhouettes(
    points: npt.NDArray[np.floating], groups: Int64, *, metric: Metric = "euclidean", between: Between = "nearest"
) -> Float64:
    """Return each cell's silhouette (C,): (b - a) / max(a, b), zero for a cell alone in its group.

    a is the mean distance to the other cells of its group; b the one to the nearest other group, or with
    ``mean_other`` the mean distance to all cells of other groups. ``groups`` (C,) are codes 0 ... G - 1, G > 1.
    """
    prepared = _prepared(points, metric)
    counts = np.bincount(groups)
    members = np.eye(len(counts))[groups]  # (C, G)
    found = np.zeros(len(prepared))
    for rows in row_chunks(len(prepared), bytes_per_row=3 * 8 * len(prepared)):
        sums = _distances(prepared[rows], prepared, metric) @ members  # (rows, G)
        found[rows] = _silhouettes_of(sums, groups[rows], counts, between)
    return found


def label_silhouettes(points: npt.NDArray[np.floating], labels: Int64) -> tuple[float, Float64]:
    """Return (mean s + 1) / 2 of Euclidean silhouettes of cell types: over all cells, and within each label (L,)."""
    scaled = (silhouettes(points, labels) + 1) / 2
    return float(scaled.mean()), np.bincount(labels, scaled) / np.bincount(labels)


def batch_silhouettes(
    points: npt.NDArray[np.floating], labels: Int64, batches: Int64, *, metric: Metric, between: Between
) -> Float64:
    """Return for each label (L,) the mean of 1 - |s|, s being the silhouettes of batches among its cells.

    With Euclidean distance and the nearest batch this is ASW batch, with cosine distance and ``mean_other`` BRAS. NaN
    for a label that is in one batch only, or in as many as it has cells.
    """
    found = np.full(int(labels.max()) + 1, np.nan)
    for label in range(len(found)):
        cells = np.flatnonzero(labels == label)
        names, groups = np.unique(batches[cells], return_inverse=True)
        if 1 < len(names) < len(cells):
            found[label] = np.mean(1 - np.abs(silhouettes(points[cells], groups, metric=metric, between=between)))
    return found


def _prepared(points: npt.NDArray[np.floating], metric: Metric) -> Float64:
    values = np.asarray(points, np.float64)
    if metric == "euclidean":
        return np.asarray(values - values.mean(axis=0))  # smaller numbers cancel less
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(np.divide(values, norms, out=np.zeros_like(values), where=norms > 0))


def _distances(some: Float64, points: Float64, metric: Metric) -> Float64:
    products = some @ points.T
    if metric == "cosine":
        return np.subtract(1, products, out=products)
    products *= -2
    products += np.einsum("cd,cd->c", some, some)[:, None]
    products += np.einsum("cd,cd->c", points, points)
    return np.sqrt(np.maximum(products, 0, out=products), out=products)


def _silhouettes_of(sums: Float64, own: Int64, counts: Int64, between: Between) -> Float64:
    """Return silhouettes from the sums of distances (rows, G) of some cells of groups ``own`` (rows,)."""
    rows = np.arange(len(own))
    within = sums[rows, own] / np.maximum(counts[own] - 1, 1)
    if between == "mean_other":
        other = (sums.sum(axis=1) - sums[rows, own]) / (counts.sum() - counts[own])
    else:
        means = sums / counts
        means[rows, own] = np.inf
        other = means.min(axis=1)
    larger = np.maximum(within, other)
    defined = (larger > 0) & (counts[own] > 1)
    return np.asarray(np.divide(other - within, larger, out=np.zeros(len(own)), where=defined))
