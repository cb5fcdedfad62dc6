"""Exact nearest neighbours of cells, and the weighted graph that UMAP, Leiden and kBET build on them."""

# C cells, D dimensions, K neighbours (the cell itself is the first)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CHUNK_BYTES = 64 * 2**20  # of distances held at a time
_SEARCH_STEPS = 64  # halvings of a kernel's width, as UMAP does
_SEARCH_TOLERANCE = 1e-5
_SMALLEST_WIDTH = 1e-3  # of the mean distance to the neighbours


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The K nearest cells of every cell by Euclidean distance, nearest first; the first is the cell itself."""

    indices: Int64  # (C, K)
    distances: Float64  # (C, K)

    def nearest(self, num_neighbours: int) -> Neighbours:
        """Return the first ``num_neighbours`` columns (all of them if there are fewer)."""
        return Neighbours(self.indices[:, :num_neighbours], self.distances[:, :num_neighbours])

    def graph(self) -> sparse.csr_array:
        """Return the directed graph (C, C) with an edge of weight 1 from each cell to each of its neighbours."""
        return _rows_to_graph(np.ones_like(self.distances), self.indices)

    def connectivities(self) -> sparse.csr_array:
        """Return UMAP's undirected graph (C, C): weights in (0, 1], adapted to each cell's local density.

        A cell's nearest distinct neighbour has weight 1; widths are such that the weights sum to log2(K) (McInnes et
        al. 2018); the two directions a, b of an edge are joined as a + b - ab.
        """
        offsets = _nearest_distinct(self.distances)
        beyond = np.maximum(self.distances - offsets[:, None], 0)
        widths = _kernel_widths(beyond, self.distances, offsets)
        weights = np.exp(-beyond / np.where(widths > 0, widths, 1)[:, None])
        weights[self.indices == np.arange(len(weights))[:, None]] = 0
        directed = _rows_to_graph(weights.astype(np.float32), self.indices)
        directed.eliminate_zeros()
        backward = directed.T.tocsr()
        joined = (directed + backward - directed * backward).tocsr()
        joined.sort_indices()  # Leiden depends on the order of edges
        joined.eliminate_zeros()
        return joined


def find_neighbours(points: npt.NDArray[np.floating], *, num_neighbours: int) -> Neighbours:
    """Return the ``num_neighbours`` nearest of C ``points`` (C, D) for each of them, exactly; equals by their index.

    The search compares every pair of cells in chunks of bounded memory: right up to some 50,000 cells.
    """
    centred = np.asarray(points, np.float64)
    centred = np.ascontiguousarray(centred - centred.mean(axis=0))
    num = min(num_neighbours, len(centred))
    search = NearestNeighbors(n_neighbors=num, algorithm="brute").fit(centred)
    indices = search.kneighbors(centred, return_distance=False).astype(np.int64)
    cells = np.arange(len(centred))
    without_self = ~(indices == cells[:, None]).any(axis=1)  # more than K cells at one point
    indices[without_self, -1] = cells[without_self]
    return _sorted_with_self_first(indices, _distances_to(centred, indices))


def row_chunks(num_rows: int, *, bytes_per_row: int) -> Iterator[slice]:
    """Yield slices over ``num_rows`` rows, each of at most ``CHUNK_BYTES`` but of one row at least."""
    step = max(1, CHUNK_BYTES // max(1, bytes_per_row))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _distances_to(points: Float64, indices: Int64) -> Float64:
    """Return distances without the cancellation of |x|² - 2xy + |y|², so that equal cells are at distance 0."""
    distances = np.empty(indices.shape)
    for rows in row_chunks(len(points), bytes_per_row=8 * indices.shape[1] * points.shape[1]):
        offsets = points[indices[rows]] - points[rows, None]
        distances[rows] = np.sqrt(np.einsum("ckd,ckd->ck", offsets, offsets))
    return distances


def _sorted_with_self_first(indices: Int64, distances: Float64) -> Neighbours:
    is_self = indices == np.arange(len(indices))[:, None]
    order = np.lexsort((indices, np.where(is_self, -1.0, distances)))
    return Neighbours(np.take_along_axis(indices, order, 1), np.take_along_axis(distances, order, 1))


def _rows_to_graph(weights: npt.NDArray[np.floating], indices: Int64) -> sparse.csr_array:
    num_cells, num = indices.shape
    indptr = np.arange(0, num_cells * num + 1, num)
    # Copies: the graph drops its zeros in place, and of few cells all neighbours are in it.
    return sparse.csr_array((weights.flatten(), indices.flatten(), indptr), shape=(num_cells, num_cells))


def _nearest_distinct(distances: Float64) -> Float64:
    """Return each cell's smallest distance above zero (C,), zero if all its neighbours lie on top of it."""
    smallest = np.where(distances > 0, distances, np.inf).min(axis=1)
    return np.where(np.isfinite(smallest), smallest, 0.0)


def _kernel_widths(beyond: Float64, distances: Float64, offsets: Float64) -> Float64:
    """Return the widths (C,) for which the weights of the K - 1 neighbours sum to log2(K), by bisection."""
    target = np.log2(beyond.shape[1])
    low, high, width = np.zeros(len(beyond)), np.full(len(beyond), np.inf), np.ones(len(beyond))
    for _ in range(_SEARCH_STEPS):
        total = np.exp(-beyond[:, 1:] / width[:, None]).sum(axis=1)
        searching = np.abs(total - target) >= _SEARCH_TOLERANCE
        if not searching.any():
            break
        low, high = np.where(total > target, low, width), np.where(total > target, width, high)
        middle = np.where(np.isfinite(high), (low + high) / 2, width * 2)
        width = np.where(searching, middle, width)
    least = np.where(offsets > 0, distances.mean(axis=1), distances.mean()) * _SMALLEST_WIDTH
    return np.asarray(np.maximum(width, least))
