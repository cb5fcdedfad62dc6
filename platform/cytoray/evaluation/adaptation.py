"""Adapt answers to the query as a whole (transductive): its label frequencies, and its own neighbourhoods.

A cell's answer then depends on the cells that are asked about with it, so this is done only if asked for, and named.
"""

# C cells of the query, K labels, P components, N neighbours

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
FEWEST_CELLS = 200  # of a query whose label frequencies can be estimated
NUM_NEIGHBOURS = 15
NUM_ROUNDS = 50
CHUNK = 1024  # cells whose distances to all others are held at a time


def adapt_frequencies(probabilities_CK: Float64, trained_K: Float64) -> Float64:
    """Return probabilities under the query's own label frequencies, by expectation-maximisation.

    ``trained_K``: the frequencies that the probabilities assume. Saerens, Latinne and Decaestecker 2002. Queries of
    fewer than 200 cells are returned as they are.
    """
    if len(probabilities_CK) < FEWEST_CELLS:
        return probabilities_CK
    trained = np.maximum(trained_K, 1e-6)
    frequencies, adapted = trained.copy(), probabilities_CK
    for _ in range(NUM_ROUNDS):
        weighted = probabilities_CK * (frequencies / trained)
        adapted = weighted / weighted.sum(axis=1, keepdims=True)
        frequencies = adapted.mean(axis=0)
    return adapted


def smooth_over_neighbours(probabilities_CK: Float64, neighbours_CN: Int64, *, times: int = 1) -> Float64:
    """Average each cell's probabilities with those of its neighbours, ``times`` times."""
    smoothed = probabilities_CK
    for _ in range(times):
        smoothed = (smoothed + smoothed[neighbours_CN].sum(axis=1)) / (neighbours_CN.shape[1] + 1)
    return smoothed


def nearest_neighbours(
    points_CP: Float32, others_OP: Float32 | None = None, *, num: int = NUM_NEIGHBOURS
) -> tuple[Int64, Float32]:
    """Return the ``num`` nearest of the ``others`` to each point, nearest first, and their distances: both (C, num).

    Without ``others`` among the points themselves, without the point. Exact; fewer if there are fewer. Of equally near
    ones the first.
    """
    among = points_CP if others_OP is None else others_OP
    num = min(num, len(among) - (others_OP is None))
    places = np.empty((len(points_CP), num), np.int64)
    distances = np.empty((len(points_CP), num), np.float32)
    squares = (among.astype(np.float64) ** 2).sum(axis=1)
    for start in range(0, len(points_CP), CHUNK):
        block = points_CP[start : start + CHUNK].astype(np.float64)
        apart = (block**2).sum(axis=1)[:, None] + squares - 2 * block @ among.T
        if others_OP is None:
            apart[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        near = np.sort(np.argpartition(apart, num - 1, axis=1)[:, :num], axis=1)
        found = np.take_along_axis(apart, near, axis=1)
        order = np.argsort(found, axis=1, kind="stable")
        places[start : start + CHUNK] = np.take_along_axis(near, order, axis=1)
        nearest = np.maximum(np.take_along_axis(found, order, axis=1), 0)
        distances[start : start + CHUNK] = np.sqrt(nearest)
    return places, distances
