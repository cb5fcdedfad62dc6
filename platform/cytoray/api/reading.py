"""Read cells range by range and check every value; the first bad one is named by cell and gene."""

# C cells (rows read), G genes of the source

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.api.sources import matrix_with_counts
from cytoray.corpus.checking.checks import blank_rows, other_species
from cytoray.corpus.checking.scan import NEGATIVE, NON_INTEGER, NOT_FINITE, first_fault, scan_rows
from cytoray.corpus.config import CheckConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.errors import CorpusError
from cytoray.tokens.binning import bin_rows
from cytoray.tokens.cells import Int32
from cytoray.tokens.keys import cell_id
from cytoray.tokens.packed import PackedCells, concatenate, pack_rows, packed_counts, with_bins
from cytoray.tokens.vocabulary import GeneMapping

ROWS_AT_A_TIME = 2_048
_FAULTS = {NOT_FINITE: "is not finite", NEGATIVE: "is negative", NON_INTEGER: "is not an integer"}


@dataclass(frozen=True)
class CheckedReading:
    """A pass over all cells of ``reader``, which was opened on ``cells``."""

    cells: Any
    reader: CellReader
    counts: bool  # whether values must be integers
    drawn_bins: int | None = None  # bins drawn by NumPy's global generator, in the order of rows and columns

    def read(self, mapping: GeneMapping, advance: Callable[[float], object]) -> tuple[PackedCells, bool]:
        """Return the cells over the vocabulary, and whether all values are integers; CorpusError for the first bad one.

        ``advance`` receives the number of cells done.
        """
        # An AnnData without cells has no embeddings, which is an answer; files without cells are refused elsewhere.
        num_cells = self.reader.describe().num_cells if len(self.reader.obs) else 0
        ids = cell_id("", [str(name) for name in self.reader.obs.index])
        parts, whole = [], True
        for start in range(0, max(num_cells, 1), ROWS_AT_A_TIME):
            stop = min(start + ROWS_AT_A_TIME, num_cells)
            matrix = self._checked(start, stop)
            # Cells of another species than the model's are left without genes, as an ingest leaves them out.
            matrix = blank_rows(matrix, other_species(matrix, mapping, min_human_share=CheckConfig().min_human_share))
            whole = whole and (self.counts or bool(np.array_equal(matrix.data, np.rint(matrix.data))))
            try:
                packed = pack_rows(matrix, mapping.ids, ids[start:stop], counts=self.counts)
                if self.drawn_bins is not None:
                    packed = with_bins(packed, _draw_bins(matrix, mapping.ids, self.drawn_bins))
                parts.append(packed)
            except ValueError as error:
                raise CorpusError(
                    f"{self._where()}, rows {start:,} to {stop:,}: {error}.",
                    remedy="Check the matrix, or set use_raw_counts=False.",
                ) from error
            advance(stop - start)
        return concatenate(parts), whole

    def _checked(self, start: int, stop: int) -> sparse.csr_matrix:
        """Return the checked rows ``start`` to ``stop`` (C, G); counts that went through floats are rounded."""
        matrix = self.reader.read_rows(start, stop)
        scan = scan_rows(matrix, counts=self.counts)
        if scan.faults.any():
            row = int(np.flatnonzero(scan.faults)[0])
            fault = next(fault for fault in _FAULTS if scan.faults[row] & fault)
            cell = slice(matrix.indptr[row], matrix.indptr[row + 1])
            entry = cell.start + first_fault(matrix.data[cell], fault)
            raise self._refusal(start + row, int(matrix.indices[entry]), float(matrix.data[entry]), fault)
        if scan.rounded.any():
            matrix.data = np.rint(matrix.data)
        return matrix

    def _refusal(self, row: int, column: int, value: float, fault: int) -> CorpusError:
        cell, gene = str(self.reader.obs.index[row]), self.reader.gene_names[column]
        return CorpusError(
            f"{self._where()}: the value of cell {cell!r} (row {row:,}), gene {gene!r} {_FAULTS[fault]}: {value:g}.",
            remedy=self._remedy(fault),
            cell=cell,
            row=row,
            gene=gene,
        )

    def _remedy(self, fault: int) -> str:
        if fault == NOT_FINITE:
            return "Replace or remove such values (a missing count is a zero)."
        found = matrix_with_counts(self.cells)
        other = found if found is not None and found != self.reader.matrix else None
        counts = f"{other} holds raw counts: name it with matrix={other!r}" if other else ""
        if fault == NEGATIVE:
            return (
                counts or "Scaled values are not expression: name the counts with matrix='layers/NAME' or 'raw.X'"
            ) + "."
        return f"{counts}{', or s' if counts else 'S'}et use_raw_counts=False: bins depend on ranks only."

    def _where(self) -> str:
        return f"{self.reader.source.uri}: {self.reader.matrix}"


def _draw_bins(matrix: sparse.csr_matrix, ids: Int32, n_bins: int) -> npt.NDArray[np.integer]:
    """Draw bins of the entries of known genes, row by row in the order of the columns, as the original does.

    They are returned in the order in which packed cells hold their entries.
    """
    known = np.flatnonzero(ids >= 0)
    rows = sparse.csr_matrix(matrix[:, known], dtype=np.float32)
    rows.eliminate_zeros()
    bins = bin_rows(rows.data, rows.indptr.astype(np.int64), n_bins=n_bins)
    binned = sparse.csr_matrix((bins, rows.indices, rows.indptr), shape=rows.shape)
    numbers = np.zeros(rows.shape[0], np.uint64)
    return packed_counts(pack_rows(binned, ids[known], numbers, counts=True)).astype(np.int64)
