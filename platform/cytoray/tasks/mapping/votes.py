"""Votes of a cell's neighbours: nearer ones count more, and so do those of rare labels; their mean place on the map."""

# C cells, N neighbours, K labels

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
NUM_NEIGHBOURS, NUM_NEIGHBOURS_SMALL, SMALL = 30, 15, 5_000
PRIOR_POWER = -0.5
SMALLEST_DISTANCE = 1e-6
BACKGROUND = 1.0  # a neighbour's weight, shared among the labels as in the reference: no label is impossible


def num_neighbours(num_cells: int) -> int:
    """Return how many neighbours vote in a reference of this size; fewer if it has fewer cells."""
    return min(num_cells, NUM_NEIGHBOURS if num_cells >= SMALL else NUM_NEIGHBOURS_SMALL)


def kernel(distances_CN: Float32) -> Float64:
    """Return weights exp(-(d / d_last)^2) of neighbours, relative to the farthest one."""
    farthest = np.maximum(distances_CN[:, -1:].astype(np.float64), SMALLEST_DISTANCE)
    weights: Float64 = np.exp(-((distances_CN / farthest) ** 2))
    return weights


def vote(distances_CN: Float32, labels_CN: Int64, counts_K: Int64) -> Float64:
    """Return the log-probability of each label, (C, K), by the labels of the neighbours and their distances."""
    frequency = np.maximum(counts_K, 1) / max(int(counts_K.sum()), 1)
    weights = kernel(distances_CN) * frequency[labels_CN] ** PRIOR_POWER
    votes = np.zeros((len(distances_CN), len(counts_K)))
    np.add.at(votes, (np.arange(len(votes))[:, None], labels_CN), weights)
    votes += BACKGROUND * frequency
    logged: Float64 = np.log(votes / votes.sum(axis=1, keepdims=True))
    return logged


def project(distances_CN: Float32, places_CN2: Float64) -> Float64:
    """Return each cell's place, (C, 2): the weighted mean of those of its neighbours."""
    weights = kernel(distances_CN)
    weights /= weights.sum(axis=1, keepdims=True)
    projected: Float64 = (weights[:, :, None] * places_CN2).sum(axis=1)
    return projected
