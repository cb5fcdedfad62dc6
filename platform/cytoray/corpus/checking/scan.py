"""Scan the values of many cells in one pass: faults, sums and expressed genes."""

# C cells, N stored values over all cells, V genes of the vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.tokens.cells import Int64
from cytoray.tokens.coding import decode_gaps, longest
from cytoray.tokens.compiling import as_input, compiled
from cytoray.tokens.packed import PackedCells

NOT_FINITE, NEGATIVE, NON_INTEGER = 1, 2, 4  # bits of ``RowScan.faults``
INTEGER_TOLERANCE = 1e-3  # counts that went through floats


@dataclass(frozen=True, eq=False)
class RowScan:
    """Faults and sums of C rows."""

    faults: npt.NDArray[np.uint8]  # (C,) bits: NOT_FINITE, NEGATIVE, NON_INTEGER
    sums: npt.NDArray[np.float64]  # (C,) sum of values, rounded first if counts were requested
    rounded: Int64  # (C,) values that are near an integer but not on it


def scan_rows(matrix: sparse.csr_matrix, *, counts: bool) -> RowScan:
    """Scan every value of a (C, G) matrix; ``counts`` requires integers to within INTEGER_TOLERANCE."""
    num_rows = matrix.shape[0]
    faults, sums = np.zeros(num_rows, np.uint8), np.zeros(num_rows, np.float64)
    rounded = np.zeros(num_rows, np.int64)
    if np.issubdtype(matrix.data.dtype, np.integer):
        _scan_integers(matrix.data, matrix.indptr, faults, sums)
    else:
        _scan_floats(matrix.data, matrix.indptr, counts, faults, sums, rounded)
    return RowScan(faults, sums, rounded)


def first_fault(values: npt.NDArray[Any], fault: int) -> int:
    """Position of the first of one cell's values that has the fault, which must exist."""
    numbers = values.astype(np.float64)
    if fault == NOT_FINITE:
        bad = ~np.isfinite(numbers)
    elif fault == NEGATIVE:
        bad = numbers < 0
    else:
        whole = np.rint(np.where(np.isfinite(numbers), numbers, 0))
        bad = np.isfinite(numbers) & (np.abs(numbers - whole) > INTEGER_TOLERANCE)
    return int(np.flatnonzero(bad)[0])


def count_genes(cells: PackedCells, num_genes: int) -> Int64:
    """Cells that express each gene, shape (V,), straight from the gap streams: see ``PackedCells``."""
    if cells.table is None:
        counts = np.zeros(num_genes, np.int64)
        _count_genes(as_input(cells.genes, np.uint8), as_input(cells.gene_starts, np.int64), counts)
        return counts
    counts, places = np.zeros(num_genes, np.int64), np.zeros(len(cells.table), np.int64)
    _count_genes(as_input(cells.genes, np.uint8), as_input(cells.gene_starts, np.int64), places)
    known = cells.table < num_genes
    counts[cells.table[known]] = places[known]
    return counts


def add_columns(matrix: sparse.csr_matrix, rows: Int64, totals: npt.NDArray[np.float64]) -> None:
    """Add the values at ``rows`` of a (C, G) matrix to the ``totals`` (G,) of their columns."""
    _add_columns(matrix.data, matrix.indices, matrix.indptr, rows, totals)


@compiled
def _add_columns(
    data: npt.NDArray[Any],
    columns: npt.NDArray[Any],
    indptr: npt.NDArray[Any],
    rows: Int64,
    totals: npt.NDArray[np.float64],
) -> None:  # pragma: no cover - compiled
    for row in rows:
        for entry in range(indptr[row], indptr[row + 1]):
            totals[columns[entry]] += data[entry]


@compiled
def _scan_integers(
    data: npt.NDArray[Any], indptr: npt.NDArray[Any], faults: npt.NDArray[np.uint8], sums: npt.NDArray[np.float64]
) -> None:  # pragma: no cover - compiled
    for row in range(len(faults)):
        total = lowest = np.int64(0)
        for entry in range(indptr[row], indptr[row + 1]):
            value = np.int64(data[entry])
            total += value
            lowest = value if value < lowest else lowest
        sums[row] = total
        if lowest < 0:
            faults[row] = NEGATIVE


@compiled
def _scan_floats(
    data: npt.NDArray[Any],
    indptr: npt.NDArray[Any],
    counts: bool,
    faults: npt.NDArray[np.uint8],
    sums: npt.NDArray[np.float64],
    rounded: Int64,
) -> None:  # pragma: no cover - compiled
    for row in range(len(faults)):
        # Nearly every row of counts is all integers: one loop without branches, which the compiler makes parallel,
        # checks that. Neither NaN nor infinity nor a fraction comes back unchanged from an integer.
        total, strange = np.int64(0), np.int64(0)
        if counts:
            for entry in range(indptr[row], indptr[row + 1]):
                whole = np.int64(data[entry])
                strange |= np.int64(np.float64(whole) != np.float64(data[entry])) | (whole >> np.int64(62))
                total += whole
        if counts and strange == 0:
            sums[row] = total
        else:
            _scan_row(data[indptr[row] : indptr[row + 1]], counts, row, faults, sums, rounded)


@compiled
def _scan_row(
    values: npt.NDArray[Any],
    counts: bool,
    row: int,
    faults: npt.NDArray[np.uint8],
    sums: npt.NDArray[np.float64],
    rounded: Int64,
) -> None:  # pragma: no cover - compiled
    total, fault, near = 0.0, 0, 0
    for number in values:
        value = np.float64(number)
        whole = np.rint(value)
        apart = abs(value - whole)
        if not apart <= 0.5:  # NaN or infinite: their difference is NaN
            fault |= NOT_FINITE
        elif counts:
            fault |= NON_INTEGER if apart > INTEGER_TOLERANCE else 0
            near += apart > 0
            value = whole
        fault |= NEGATIVE if value < 0 else 0
        total += value
    faults[row] = fault
    sums[row] = total
    rounded[row] = near


@compiled
def _count_genes(
    genes: npt.NDArray[np.uint8], gene_starts: Int64, counts: Int64
) -> None:  # pragma: no cover - compiled
    gene_ids = np.empty(longest(gene_starts) + 1, np.int32)
    for cell in range(len(gene_starts) - 1):
        size = decode_gaps(genes[gene_starts[cell] : gene_starts[cell + 1]], gene_ids)
        for place in range(size):
            counts[gene_ids[place]] += 1
