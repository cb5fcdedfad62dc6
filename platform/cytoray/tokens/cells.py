"""Cells as sparse rows over the gene ids of a vocabulary, each with a stable id."""

# C cells, N non-zero entries over all cells

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SparseCells:
    """C cells in compressed sparse rows over vocabulary ids.

    Within a cell, ``gene_ids`` ascend strictly and ``values`` (raw counts or expression) are greater than zero;
    ``GeneMapping.apply`` establishes both. ``cell_ids`` are stable 64-bit identities (see ``tokens.keys``).
    """

    gene_ids: Int32  # (N,)
    values: Float32  # (N,)
    indptr: Int64  # (C + 1,)
    cell_ids: UInt64  # (C,)

    def __post_init__(self) -> None:
        assert self.indptr.shape == (len(self.cell_ids) + 1,), "indptr must have one entry more than there are cells"
        assert len(self.gene_ids) == len(self.values) == self.indptr[-1], "gene_ids, values and indptr disagree"

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.cell_ids)

    @property
    def num_genes_per_cell(self) -> Int64:
        """Number of expressed genes of each cell, shape (C,)."""
        return np.diff(self.indptr)

    def take(self, rows: npt.NDArray[np.integer]) -> SparseCells:
        """Return the cells at ``rows`` (shape (R,)), in that order; a row may be taken more than once."""
        lengths = self.num_genes_per_cell[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], lengths)
        return SparseCells(self.gene_ids[entries], self.values[entries], indptr, self.cell_ids[rows])

    @staticmethod
    def concatenate(parts: Sequence[SparseCells]) -> SparseCells:
        """Concatenate cells; without any part the result has zero cells."""
        lengths = [part.num_genes_per_cell for part in parts]
        return SparseCells(
            np.concatenate([np.empty(0, np.int32), *(part.gene_ids for part in parts)]),
            np.concatenate([np.empty(0, np.float32), *(part.values for part in parts)]),
            np.concatenate([[0], np.cumsum(np.concatenate([np.empty(0, np.int64), *lengths]))]).astype(np.int64),
            np.concatenate([np.empty(0, np.uint64), *(part.cell_ids for part in parts)]),
        )
