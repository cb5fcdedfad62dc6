"""Cells ready for the inference of networks: log expression, and the depth that is regressed out of it.

    cells = prepare_cells(counts, log_normalised=False)
    pools = pools_of(cells, size=10, num=5000, seed=0)

Expression without its depth is ``x - mean - slope * depth``: a cell with more counts shows more of all genes, which
would correlate any two of them.
"""

# C cells, G genes, P pools of cells, D principal components

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.evaluation.variable_genes import most_variable, standardised_variances

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
COUNTS_PER_CELL = 10_000.0
NUM_COMPONENTS, NUM_VARIABLE = 30, 1_500
LIMIT = 10.0  # standard deviations at which values are clipped before principal components
SMALLEST = 1e-9
MOST_CELLS_LOOKED_AT = 10_000  # by the choice of variable genes and principal axes
_CELLS_AT_A_TIME, _GENES_AT_A_TIME = 512, 512


@dataclass(frozen=True, eq=False)
class NetworkCells:
    """C cells over G genes: expression as log1p of counts per 10,000, sparse, and the depth of each cell."""

    expression: sparse.csc_matrix  # (C, G) float32
    depth: Float64  # (C,) log of the total; mean 0, variance 1 (or all 0, if all cells are equally deep)

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return int(self.expression.shape[0])

    @cached_property
    def means(self) -> Float64:
        """Mean expression of each gene, (G,)."""
        return np.asarray(self.expression.mean(axis=0, dtype=np.float64)).ravel()

    @cached_property
    def slopes(self) -> Float64:
        """Slope of each gene's expression on depth, (G,)."""
        return np.asarray(self.expression.T @ self.depth).ravel() / max(self.num_cells, 1)

    @cached_property
    def deviations(self) -> Float64:
        """Standard deviation of each gene's expression without its depth, (G,)."""
        squares = np.concatenate(
            [_mean_squares(self.expression[:, start : start + _GENES_AT_A_TIME])
             for start in range(0, self.expression.shape[1], _GENES_AT_A_TIME)]
            or [np.empty(0)]
        )  # fmt: skip
        slopes = self.slopes if self.depth.any() else 0.0
        found: Float64 = np.sqrt(np.maximum(squares - self.means**2 - np.square(slopes), 0.0))
        return found

    @cached_property
    def shares(self) -> Float64:
        """Share of the cells that express each gene, (G,)."""
        found: Float64 = np.diff(self.expression.indptr) / max(self.num_cells, 1)
        return found

    def select(self, genes: Int64) -> NetworkCells:
        """Return some of the genes; depth stays that of all."""
        return NetworkCells(self.expression[:, genes], self.depth)

    def take(self, rows: Int64) -> NetworkCells:
        """Return some of the cells, with depth standardised over them."""
        if len(rows) == self.num_cells and (np.diff(rows) == 1).all():  # all of them: nothing is copied
            return NetworkCells(self.expression, standardise_depth(self.depth[rows]))
        return NetworkCells(sparse.csc_matrix(self.expression[rows]), standardise_depth(self.depth[rows]))

    def residuals(self, genes: Int64) -> Float32:
        """Return standardised expression of some genes without their depth, (C, len(genes)); a constant gene is 0."""
        return self.select(genes).standardise(self.expression[:, genes].toarray(), self.depth)

    def pool(self, pools: sparse.csr_matrix) -> Float32:
        """Return the averages over pools (P, C) of the standardised expression of all genes, (P, G).

        Only stored values are averaged: no dense array has a row for each cell.
        """
        averages = (pools @ sparse.csr_matrix(self.expression)).toarray()
        return self.standardise(averages, pools @ self.depth)

    def standardise(self, values: Float32, depth: Float64) -> Float32:
        """Subtract from expression (N, G) the mean and what depth (N,) adds, and divide by the deviation; in place."""
        values -= np.outer(depth.astype(np.float32), self.slopes.astype(np.float32))
        values -= self.means.astype(np.float32)
        values /= np.where(self.deviations > SMALLEST, self.deviations, np.inf).astype(np.float32)
        return values


def prepare_cells(values: sparse.csr_matrix, *, log_normalised: bool) -> NetworkCells:
    """Return cells (C, G) of raw counts, or of expression that is normalised and logged already.

    The depth of normalised cells is the log of their sum, which follows their true depth, if less closely.
    """
    matrix = sparse.csr_matrix(values, dtype=np.float32, copy=True)
    totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    if not log_normalised:
        factors = np.divide(COUNTS_PER_CELL, totals, out=np.zeros_like(totals), where=totals > 0)
        matrix.data *= np.repeat(factors.astype(np.float32), np.diff(matrix.indptr))
        np.log1p(matrix.data, out=matrix.data)
    return NetworkCells(sparse.csc_matrix(matrix), standardise_depth(np.log(np.maximum(totals, SMALLEST))))


def standardise_depth(depth: Float64) -> Float64:
    """Return log totals (C,) with mean 0 and variance 1, all 0 if they do not differ."""
    centred = depth - depth.mean()
    spread = float(centred.std())
    return centred / spread if spread > SMALLEST else np.zeros_like(centred)


def pools_of(cells: NetworkCells, *, size: int, num: int, seed: int) -> sparse.csr_matrix:
    """Return the weights (P, C) that average each of at most ``num`` cells with its ``size`` - 1 nearest ones.

    The cells are a random sample if there are more than ``num``. Nearest: by principal components of the most variable
    genes, of those that ``cells`` have, without depth.
    """
    rng = np.random.default_rng(seed)
    anchors = np.arange(cells.num_cells)
    if len(anchors) > num:
        anchors = np.sort(rng.choice(anchors, num, replace=False))
    size = min(size, cells.num_cells)
    if size <= 1:
        ones = np.ones(len(anchors), np.float32)
        return sparse.csr_matrix((ones, (np.arange(len(anchors)), anchors)), (len(anchors), cells.num_cells))
    points = components(cells, seed=seed)
    nearest = _nearest(points, anchors, size)
    indptr = np.arange(0, len(anchors) * size + 1, size)
    shares = np.full(nearest.size, 1.0 / size, np.float32)
    return sparse.csr_matrix((shares, nearest.ravel(), indptr), (len(anchors), cells.num_cells))


def variable_genes(cells: NetworkCells, *, num: int = NUM_VARIABLE, seed: int = 0) -> Int64:
    """Return the ``num`` most variable genes, given their mean; of a random sample of the cells if there are many."""
    counts = sparse.csr_matrix(cells.expression[_sample(cells.num_cells, seed)])
    counts.data = np.expm1(counts.data)
    return most_variable(standardised_variances(counts), num)


def components(cells: NetworkCells, *, seed: int) -> Float32:
    """Return principal components of the most variable genes without depth, (C, D).

    The axes are those of a random sample of the cells if there are many.
    """
    from sklearn.utils.extmath import randomized_svd

    part = cells.select(variable_genes(cells, seed=seed))
    matrix = sparse.csr_matrix(part.expression)
    rows = _sample(part.num_cells, seed)

    def clipped(some: Int64) -> Float32:
        """Return the standardised expression of some cells, within limits."""
        return np.clip(part.standardise(matrix[some].toarray(), part.depth[some]), -LIMIT, LIMIT)

    values = clipped(rows)
    num = min(NUM_COMPONENTS, *values.shape)
    left, sizes, axes = randomized_svd(values, num, random_state=seed)
    if len(rows) == part.num_cells:
        return np.asarray(left * sizes, np.float32)
    starts = range(0, part.num_cells, _CELLS_AT_A_TIME)
    blocks = [np.arange(start, min(start + _CELLS_AT_A_TIME, part.num_cells)) for start in starts]
    return np.concatenate([clipped(block) @ axes.T for block in blocks]).astype(np.float32)


def _nearest(points: Float32, anchors: Int64, size: int) -> Int64:
    """Return the ``size`` nearest points of each anchor, itself the first, (P, size)."""
    squares = np.einsum("cd,cd->c", points, points)
    found = np.empty((len(anchors), size), np.int64)
    for start in range(0, len(anchors), _CELLS_AT_A_TIME):
        some = anchors[start : start + _CELLS_AT_A_TIME]
        distances = squares[None] - 2 * points[some] @ points.T
        distances[np.arange(len(some)), some] = -np.inf
        places = np.argpartition(distances, size - 1, axis=1)[:, :size]
        found[start : start + len(some)] = np.sort(places, axis=1)
    return found


def equal_halves(num_cells: int, *, groups: Sequence[str] | None = None, seed: int) -> tuple[Int64, Int64]:
    """Split cells at random into two halves; of each of ``groups`` (C,), if given, half the cells."""
    rng = np.random.default_rng(seed)
    names = np.zeros(num_cells, np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    order = np.lexsort((rng.random(num_cells), names))
    return np.sort(order[::2]), np.sort(order[1::2])


def _sample(num_cells: int, seed: int) -> Int64:
    """Return the rows of all cells, or of a random sample of them."""
    if num_cells <= MOST_CELLS_LOOKED_AT:
        return np.arange(num_cells)
    return np.sort(np.random.default_rng(seed).choice(num_cells, MOST_CELLS_LOOKED_AT, replace=False))


def _mean_squares(expression: sparse.csc_matrix) -> Float64:
    return np.asarray(expression.multiply(expression).mean(axis=0, dtype=np.float64)).ravel()
