"""Cells as a mapper sees them: expression over the vocabulary, and what else is known about each."""

# C cells, V genes of the vocabulary

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.evaluation.voters import Expression
from cytoray.tokens.cells import SparseCells

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MapCells:
    """C cells with what is known about each."""

    expression: Expression
    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    sources: tuple[str, ...]
    batches: tuple[str, ...] | None = None
    measured: npt.NDArray[np.bool_] | None = None  # (V,)

    @property
    def is_empty(self) -> npt.NDArray[np.bool_]:
        """Cells (C,) without a gene of the vocabulary."""
        empty: npt.NDArray[np.bool_] = np.diff(self.expression.values.indptr) == 0
        return empty

    @property
    def expressed(self) -> npt.NDArray[np.bool_]:
        """Genes (V,) that at least one cell expresses."""
        values = self.expression.values
        found: npt.NDArray[np.bool_] = np.bincount(values.indices[values.data != 0], minlength=values.shape[1]) > 0
        return found

    def take(self, rows: Int64) -> MapCells:
        """Return some of the cells."""
        return replace(
            self,
            expression=self.expression.take(rows),
            names=tuple(self.names[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            sources=tuple(self.sources[row] for row in rows),
            batches=None if self.batches is None else tuple(self.batches[row] for row in rows),
        )


def as_query(cells: SparseCells, *, genes: npt.NDArray[np.int32], num_genes: int) -> MapCells:
    """Return cells over a vocabulary of ``num_genes``, of whose genes those with the ids ``genes`` were measured."""
    measured = np.zeros(num_genes, bool)
    measured[genes] = True
    nothing = (None,) * cells.num_cells
    return MapCells(as_expression(cells, num_genes=num_genes), ("",) * cells.num_cells, nothing, (), None, measured)


def as_expression(cells: SparseCells, *, num_genes: int) -> Expression:
    """Return cells as expression; values with fractions are taken as log1p of normalised counts, and normalised anew.

    So a query that was normalised to another total is on the reference's scale. Values above 20 are not logarithms.
    """
    shape = (cells.num_cells, num_genes)
    values = sparse.csr_matrix((cells.values.astype(np.float32), cells.gene_ids, cells.indptr), shape=shape)
    if (values.data != np.round(values.data)).any() and values.data.max() <= 20:
        values = values.expm1()
    return Expression(values)


def keep_genes(values: sparse.csr_matrix, kept: npt.NDArray[np.bool_]) -> sparse.csr_matrix:
    """Return cells (C, V) with the values of other genes removed."""
    matrix = sparse.csr_matrix(values, copy=True)
    matrix.data *= kept[matrix.indices]
    matrix.eliminate_zeros()
    return matrix
