"""Baselines for the prediction of hidden genes: mean bins, and the bins of similar cells.

    report = judge_baselines(train, known=known, unknown=unknown)
    report.best.mean_squared_error  # of the strongest of the three, to set beside the model's

The error is that of scGPT's objective: over hidden genes that are expressed, in bins. Part of it nobody can avoid, as
tied values share their bins by chance.
"""

# C training cells, Q test cells, G genes, U hidden genes of all test cells, N entries, P principal components

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.errors import CorpusError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_TINY = 1e-12
_CHUNK_BYTES = 64 * 2**20  # of similarities, and of sums over neighbours, held at a time
_TUNING_CELLS = 256  # at most so many are set aside to choose k and shrinkage
_TUNING_SEED = 0


@dataclass(frozen=True, eq=False)
class BinnedCells:
    """Expressed genes of cells as ragged rows, without ``<cls>``: those of cell c are ``indptr[c]:indptr[c + 1]``."""

    gene_ids: npt.NDArray[np.integer]  # (N,)
    bins: npt.NDArray[Any]  # (N,) above zero
    indptr: npt.NDArray[np.integer]  # (C + 1,)

    def __post_init__(self) -> None:
        assert len(self.gene_ids) == len(self.bins) == self.indptr[-1], "gene_ids, bins and indptr disagree"

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.indptr) - 1

    @property
    def cells(self) -> Int64:
        """The cell of each entry (N,)."""
        return np.repeat(np.arange(self.num_cells), np.diff(self.indptr))

    def to_matrix(self, num_genes: int) -> sparse.csr_matrix:
        """Return the bins as a sparse matrix (C, G), zero for genes that are not expressed."""
        parts = self.bins.astype(np.float32), self.gene_ids, self.indptr
        return sparse.csr_matrix(parts, (self.num_cells, num_genes))


@dataclass(frozen=True)
class NeighbourOptions:
    """How neighbours are found and weighted; options with several values are chosen on training cells set aside."""

    num_components: int = 50
    num_neighbours: tuple[int, ...] = (10, 30, 100, 300, 1000)
    shrinkages: tuple[float, ...] = (3.0, 10.0, 30.0)  # weight of a gene's mean, in neighbours
    seed: int = 0  # of the decomposition


@dataclass(frozen=True)
class HiddenBinScore:
    """How far predictions lie from the bins of hidden genes; every hidden gene of every cell counts the same."""

    mean_squared_error: float
    mean_absolute_error: float
    mean_relative_error: float  # mean of |error| / bin
    num_genes: int  # hidden genes over all cells, U


@dataclass(frozen=True)
class ExpressionBaselines:
    """The baselines' scores on one set of hidden genes, and what the neighbours were chosen to be."""

    global_mean: HiddenBinScore
    gene_mean: HiddenBinScore
    neighbours: HiddenBinScore
    num_neighbours: int
    shrinkage: float

    @property
    def best(self) -> HiddenBinScore:
        """The score of least squared error."""
        return min(self.global_mean, self.gene_mean, self.neighbours, key=lambda score: score.mean_squared_error)


def judge_baselines(
    train: BinnedCells, *, known: BinnedCells, unknown: BinnedCells, options: NeighbourOptions | None = None
) -> ExpressionBaselines:
    """Predict the hidden genes of test cells (``unknown``) from ``train`` and the rest of their cells (``known``).

    Raises CorpusError if there is no training cell or no hidden gene.
    """
    assert known.num_cells == unknown.num_cells, f"{known.num_cells} cells but {unknown.num_cells} have hidden genes"
    if not len(train.bins) or not len(unknown.bins):
        what = "hidden gene to judge" if len(train.bins) else "training cell to fit"
        raise CorpusError(f"No {what} baselines on.", remedy="Hold out other cells.")
    options = options or NeighbourOptions()
    num_neighbours, shrinkage = choose_neighbours(train, options)
    single = NeighbourOptions(options.num_components, (num_neighbours,), (shrinkage,), options.seed)
    num_genes = _num_genes(train, known, unknown)
    return ExpressionBaselines(
        score_bins(np.full(len(unknown.bins), global_mean_bin(train)), unknown.bins),
        score_bins(gene_mean_bins(train, num_genes=num_genes)[unknown.gene_ids], unknown.bins),
        score_bins(neighbour_bins(train, known=known, unknown=unknown, options=single)[0, 0], unknown.bins),
        num_neighbours,
        shrinkage,
    )


def score_bins(predicted_U: npt.NDArray[np.floating], true_U: npt.NDArray[Any]) -> HiddenBinScore:
    """Score predictions of hidden genes (U,), which must be expressed: bins of 1 and above."""
    true = np.asarray(true_U, np.float64)
    assert true.min(initial=np.inf) > 0, "only expressed genes are judged"
    error = np.asarray(predicted_U, np.float64) - true
    absolute = np.abs(error)
    return HiddenBinScore(
        float(np.mean(error**2)), float(absolute.mean()), float(np.mean(absolute / true)), num_genes=len(true)
    )


def global_mean_bin(train: BinnedCells) -> float:
    """Mean bin of all expressed genes."""
    return float(np.mean(train.bins, dtype=np.float64))


def gene_mean_bins(train: BinnedCells, *, num_genes: int, pseudo_cells: float = 5.0) -> Float64:
    """Mean bin of each gene (G,) where it is expressed, the global mean counting as ``pseudo_cells`` further cells.

    A gene that training never saw has the global mean.
    """
    counts = np.bincount(train.gene_ids, minlength=num_genes)
    sums = np.bincount(train.gene_ids, train.bins.astype(np.float64), num_genes)
    means: Float64 = (sums + pseudo_cells * global_mean_bin(train)) / (counts + pseudo_cells)
    return means


def choose_neighbours(train: BinnedCells, options: NeighbourOptions) -> tuple[int, float]:
    """The number of neighbours and the shrinkage that do best on some training cells with half their genes hidden.

    Those cells are asked of the others only. A single choice, or too few cells to set any aside, gives the first.
    """
    aside = min(_TUNING_CELLS, train.num_cells // 4)
    if aside == 0 or len(options.num_neighbours) * len(options.shrinkages) == 1:
        return options.num_neighbours[0], options.shrinkages[0]
    rng = np.random.default_rng(_TUNING_SEED)
    order = rng.permutation(train.num_cells)
    asked, others = _take(train, np.sort(order[:aside])), _take(train, np.sort(order[aside:]))
    hidden = rng.random(len(asked.bins)) < 0.5
    known, unknown = _keep(asked, ~hidden), _keep(asked, hidden)
    guesses = neighbour_bins(others, known=known, unknown=unknown, options=options)
    errors = np.mean((guesses - unknown.bins) ** 2, axis=-1)
    best = np.unravel_index(np.argmin(errors), errors.shape)
    return options.num_neighbours[int(best[0])], options.shrinkages[int(best[1])]


def neighbour_bins(
    train: BinnedCells, *, known: BinnedCells, unknown: BinnedCells, options: NeighbourOptions
) -> Float64:
    """Bins (K, S, U) of the hidden genes, for each number of neighbours K and each shrinkage S of ``options``.

    Cells lie where the principal components of log(1 + bin) put them, and are near by the angle between them, so that
    one of whose genes half are hidden still lies with its like. A test cell is placed by its known genes alone. A
    hidden gene is given its mean bin among the nearest training cells that express it, its mean in all of training
    counting as ``shrinkage`` neighbours.
    """
    num_genes = _num_genes(train, known, unknown)
    bins_CG = train.to_matrix(num_genes)
    expressed_CG = bins_CG.sign()
    means_U = gene_mean_bins(train, num_genes=num_genes)[unknown.gene_ids]
    shrinkages_S1 = np.array(options.shrinkages, np.float64)[:, None]
    guesses_KSU = np.empty((len(options.num_neighbours), len(shrinkages_S1), len(unknown.bins)))
    nearest = _nearest(bins_CG, known.to_matrix(num_genes), options)
    for cells, order_QK in nearest:
        entries = slice(int(unknown.indptr[cells.start]), int(unknown.indptr[cells.stop]))
        places = unknown.cells[entries] - cells.start, unknown.gene_ids[entries]
        for number, wanted in enumerate(options.num_neighbours):
            weights_QC = _choice(order_QK[:, :wanted], bins_CG.shape[0])
            sums_U, counts_U = (_entries(weights_QC @ matrix, places) for matrix in (bins_CG, expressed_CG))
            shrunk = (sums_U + shrinkages_S1 * means_U[entries]) / (counts_U + shrinkages_S1)
            guesses_KSU[number, :, entries] = shrunk
    return guesses_KSU


def _nearest(
    train_CG: sparse.csr_matrix, test_QG: sparse.csr_matrix, options: NeighbourOptions
) -> Iterator[tuple[slice, Int64]]:
    """The training cells nearest to test cells, nearest first, for some test cells after the other."""
    train_CP, test_QP = _place(train_CG, test_QG, options)
    num_train, num_genes = train_CG.shape
    most = min(max(options.num_neighbours), num_train)
    rows = max(1, _CHUNK_BYTES // (8 * max(num_train, num_genes)))
    for start, stop in pairwise([*range(0, len(test_QP), rows), len(test_QP)]):
        similar_QC = test_QP[start:stop] @ train_CP.T
        # Equal ones in the order of training, so that the answer does not hang on how a sort is done.
        yield slice(start, stop), np.argsort(-similar_QC, axis=1, kind="stable")[:, :most]


def _place(
    train_CG: sparse.csr_matrix, test_QG: sparse.csr_matrix, options: NeighbourOptions
) -> tuple[Float32, Float32]:
    """Training cells (C, P) and test cells (Q, P) as directions in the space of the principal components."""
    train, test = _directions(train_CG.log1p()), _directions(test_QG.log1p())
    most = min(options.num_components, min(train.shape) - 1)
    if most < 1:
        return np.ones((train.shape[0], 1), np.float32), np.ones((test.shape[0], 1), np.float32)
    # Two threads on busy cores wait for each other; see evaluation.baselines.
    with threadpool_limits(1):
        components = TruncatedSVD(most, n_iter=4, random_state=options.seed).fit(train).components_.T
    return _unit(train @ components), _unit(test @ components)


def _directions(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Rows of length one; empty ones stay empty."""
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
    return (sparse.diags_array((1 / np.maximum(lengths, _TINY)).astype(np.float32)) @ matrix).tocsr()


def _unit(rows: npt.NDArray[np.floating]) -> Float32:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, _TINY), np.float32)


def _choice(order_QK: Int64, num_cells: int) -> sparse.csr_matrix:
    """One in the column of each chosen training cell, (Q, C)."""
    num_rows, chosen = order_QK.shape
    indptr = np.arange(num_rows + 1) * chosen
    return sparse.csr_matrix((np.ones(order_QK.size, np.float32), order_QK.ravel(), indptr), (num_rows, num_cells))


def _entries(matrix: sparse.csr_matrix, places: tuple[Int64, npt.NDArray[np.integer]]) -> Float64:
    return np.asarray(matrix.toarray()[places], np.float64)


def _take(cells: BinnedCells, rows: Sequence[int] | Int64) -> BinnedCells:
    """Some cells, in the order of ``rows``."""
    lengths = np.diff(cells.indptr)[rows]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    entries = np.arange(indptr[-1]) + np.repeat(cells.indptr[:-1][rows] - indptr[:-1], lengths)
    return BinnedCells(cells.gene_ids[entries], cells.bins[entries], indptr)


def _keep(cells: BinnedCells, kept: npt.NDArray[np.bool_]) -> BinnedCells:
    """The same cells with some of their entries."""
    running = np.concatenate([[0], np.cumsum(kept)])
    return BinnedCells(cells.gene_ids[kept], cells.bins[kept], running[cells.indptr])


def _num_genes(*parts: BinnedCells) -> int:
    return 1 + max(int(part.gene_ids.max(initial=0)) for part in parts)
