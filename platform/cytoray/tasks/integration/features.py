"""Linear features of cells before integration: principal components of the most variable genes, plain and scaled."""

# C cells, G genes, F chosen genes, P components, D features of all blocks, B batches

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from sklearn.decomposition import PCA

from cytoray.errors import CorpusError
from cytoray.evaluation.variable_genes import standardised_variances

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
NUM_GENES = 2000
LIMIT = 10.0  # standard deviations at which scaled values are clipped
SMALLEST_BATCH = 20  # cells from which a batch ranks genes by itself
ROWS_AT_A_TIME = 4_096


@dataclass(frozen=True, eq=False)
class GeneBlock:
    """Principal components of chosen genes, in units in which the fitted cells have a mean square norm of 1."""

    genes: Int64  # (F,) positions among the G genes
    centre: Float32  # (F,)
    scale: Float32  # (F,)
    axes: Float32  # (F, P)
    limit: float = np.inf  # of centred and scaled values

    def transform(self, expression: sparse.csr_matrix) -> Float32:
        """Return the components (C, P) of log-normalised expression (C, G)."""
        chosen = expression[:, self.genes]
        parts = [
            self._dense(chosen[start : start + ROWS_AT_A_TIME])
            for start in range(0, max(chosen.shape[0], 1), ROWS_AT_A_TIME)
        ]
        return np.concatenate(parts)

    def _dense(self, chosen: sparse.csr_matrix) -> Float32:
        values = chosen.toarray().astype(np.float32)
        values -= self.centre
        values /= self.scale
        if np.isfinite(self.limit):
            np.clip(values, -self.limit, self.limit, out=values)
        product: Float32 = values @ self.axes
        return product


def variable_in_batches(values: sparse.csr_matrix, batches: Sequence[str], *, num_genes: int = NUM_GENES) -> Int64:
    """Return the genes (F,), ascending, that are among the most variable ones of most batches; of equals, by rank.

    A gene that varies in no batch is never chosen. Batches of fewer than 20 cells do not vote unless all are so small.
    """
    _, codes, counts = np.unique(np.asarray(batches, str), return_inverse=True, return_counts=True)
    voting = np.flatnonzero(counts >= SMALLEST_BATCH)
    groups = [np.flatnonzero(codes == batch) for batch in voting] or [np.arange(len(codes))]
    scores = np.stack([standardised_variances(values[rows]) for rows in groups])  # (B, G)
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    votes = ((ranks < num_genes) & (scores > 0)).sum(axis=0)
    order = np.lexsort((np.median(ranks, axis=0), -votes))
    chosen = order[:num_genes]
    chosen = chosen[(scores[:, chosen] > 0).any(axis=0)]
    if len(chosen) < 2:
        raise CorpusError("Fewer than two genes vary within a batch.", remedy="Give the whole expression of the cells.")
    return np.sort(chosen).astype(np.int64)


def fit_block(expression: sparse.csr_matrix, genes: Int64, *, num_components: int, scaled: bool) -> GeneBlock:
    """Fit the components of log-normalised expression (C, G); ``scaled`` gives each gene unit variance first."""
    values = expression[:, genes].toarray().astype(np.float32)
    centre = values.mean(axis=0)
    values -= centre
    scale = np.ones_like(centre)
    if scaled:
        deviations = values.std(axis=0)
        scale = np.where(deviations > 0, deviations, 1).astype(np.float32)
        values /= scale
        np.clip(values, -LIMIT, LIMIT, out=values)
    num = min(num_components, len(genes), max(len(values) - 1, 1))
    covariance = values.T.astype(np.float64) @ values / len(values)
    variances, axes = linalg.eigh(covariance, subset_by_index=(len(genes) - num, len(genes) - 1))
    axes = axes[:, ::-1] / np.sqrt(max(float(variances.clip(0).sum()), np.finfo(float).tiny))
    axes *= np.where(axes[np.abs(axes).argmax(axis=0), np.arange(num)] < 0, -1, 1)  # the same on every machine
    return GeneBlock(genes, centre, scale, axes.astype(np.float32), LIMIT if scaled else np.inf)


def components_of_all_genes(expression: sparse.csr_matrix, *, num_components: int = 50) -> Float64:
    """Return the principal components (C, P) of all genes, which PCR compares with."""
    num = min(num_components, min(expression.shape) - 1)
    found = PCA(num, svd_solver="arpack", random_state=0).fit_transform(expression.astype(np.float64))
    return np.asarray(found, np.float64)
