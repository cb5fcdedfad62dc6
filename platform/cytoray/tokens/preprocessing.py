"""Optional preprocessing of scGPT's fine-tuning recipes: depth normalisation, log1p, binned layers."""

# C cells, G genes, N entries

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.tokens.binning import bin_rows
from cytoray.tokens.keys import Float64


def normalise_total(matrix: sparse.csr_matrix, *, target: float = 1e4) -> sparse.csr_matrix:
    """Scale counts (C, G) so that each cell sums to ``target``, as float32; cells without counts stay empty."""
    matrix = sparse.csr_matrix(matrix, dtype=np.float32)
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    factors = np.divide(target, totals, out=np.ones_like(totals), where=totals > 0)
    scaled = matrix.data * np.repeat(factors.astype(np.float32), np.diff(matrix.indptr))
    return sparse.csr_matrix((scaled, matrix.indices, matrix.indptr), shape=matrix.shape)


def log1p(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return a new matrix of log(1 + x) for each entry x; unlike the original, the input is not changed."""
    return sparse.csr_matrix((np.log1p(matrix.data), matrix.indices, matrix.indptr), shape=matrix.shape)


def bin_layer(
    matrix: sparse.csr_matrix, *, n_bins: int = 51, draws: Float64 | None = None
) -> tuple[sparse.csr_matrix, Float64]:
    """Bin each cell's entries; returns the bins (C, G), int64, and the edges (C, n_bins), of which the first is 0.

    ``draws`` (N,) break ties, see ``binning.bin_rows``. ValueError names the first row with a negative or NaN entry.
    """
    matrix = sparse.csr_matrix(matrix, dtype=np.float32, copy=True)
    matrix.eliminate_zeros()
    bad = ~(matrix.data > 0)
    if bad.any():
        row = int(np.searchsorted(matrix.indptr, np.flatnonzero(bad)[0], side="right")) - 1
        raise ValueError(f"row {row} has an entry that is negative or not a number; bins need expression")
    bins = bin_rows(matrix.data, matrix.indptr.astype(np.int64), n_bins=n_bins, draws=draws)
    edges = np.zeros((matrix.shape[0], n_bins))
    for row, values in enumerate(_rows(matrix)):
        if len(values):
            edges[row, 1:] = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    return sparse.csr_matrix((bins, matrix.indices, matrix.indptr), shape=matrix.shape), edges


def _rows(matrix: sparse.csr_matrix) -> list[npt.NDArray[Any]]:
    """Return the entries of each row."""
    return np.split(matrix.data, matrix.indptr[1:-1])
