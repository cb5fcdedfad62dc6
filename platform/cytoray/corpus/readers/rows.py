"""Matrices that are read by row range: as compressed rows, or dense, from arrays that are sliced where they lie."""

# C cells (rows read), G genes (columns), N stored entries

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.readers.problems import UnreadableError

# A dense range is turned sparse in pieces of this size, whatever range was asked for.
DENSE_PIECE_BYTES = 64 * 2**20


class Array(Protocol):
    """What is asked of an array in a file: that of h5py, of zarr, or the fast one of ``hdf5``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its extents."""

    @property
    def dtype(self) -> Any:
        """Its number type."""

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Extents of the pieces it is stored in, None if in one."""

    def __getitem__(self, place: Any) -> Any: ...


class RowSource(Protocol):
    """A matrix of cells by genes that gives its rows by range."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""

    @property
    def num_entries(self) -> int | None:
        """Stored entries, None where that is not known without reading them."""

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop`` as they are stored; ValueError where they contradict themselves."""

    def sample_values(self) -> npt.NDArray[Any] | None:
        """Some values from all over the matrix, where whole rows are dear to get; None where they are not."""


@dataclass(frozen=True)
class RawRows:
    """Rows in compressed form as a file stores them: neither checked nor sorted."""

    values: npt.NDArray[Any]  # (N,)
    columns: npt.NDArray[Any]  # (N,)
    indptr: npt.NDArray[np.int64]  # (C + 1,), from 0 to N


def tidy_rows(raw: RawRows, num_genes: int) -> tuple[sparse.csr_matrix, int]:
    """Checked rows, each entry once, in order of gene and none of them zero; and how many rows were not in order.

    Raises ValueError where row pointers, columns or number types cannot be.
    """
    values = plain_numbers(raw.values)
    # scipy's compiled code would follow a wrong index out of memory: everything is checked before it sees it.
    if (np.diff(raw.indptr) < 0).any():
        raise ValueError("the row pointers fall")
    if not len(values) == len(raw.columns) == raw.indptr[-1]:
        raise ValueError(f"{len(values):,} values, {len(raw.columns):,} indices, {raw.indptr[-1]:,} entries expected")
    if raw.columns.dtype.kind not in "iu":
        raise ValueError(f"the column indices are no integers but {raw.columns.dtype}")
    if len(raw.columns):
        lowest, highest = int(raw.columns.min()), int(raw.columns.max())
        if lowest < 0 or highest >= num_genes:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"a column index is {wrong:,}, but there are {num_genes:,} genes")
    columns = raw.columns.astype(np.int32, copy=False)
    indptr = raw.indptr.astype(np.int32) if len(values) < 2**31 else raw.indptr
    matrix = sparse.csr_matrix((values, columns, indptr), shape=(len(indptr) - 1, num_genes))
    num_unsorted = 0
    if not matrix.has_canonical_format:
        num_unsorted = _count_unsorted(matrix)
        matrix.sort_indices()
        if _count_unsorted(matrix):
            matrix.data = _wide(matrix.data)  # or the sum of an entry's parts could run over
            matrix.has_canonical_format = False
            matrix.sum_duplicates()
        matrix.has_canonical_format = True
    if np.count_nonzero(matrix.data) < matrix.nnz:
        matrix.eliminate_zeros()
    return matrix, num_unsorted


def plain_numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values in a number type that scipy computes with; ValueError if they are no numbers."""
    if values.dtype.kind == "b":
        return values.view(np.uint8) if values.dtype.itemsize == 1 else values.astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise UnreadableError(
            f"the values are not numbers but {values.dtype}",
            remedy="Save a matrix of numbers, or name another one with `matrix`.",
        )
    if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
        return values.astype(np.float32 if values.dtype.itemsize < 4 else np.float64)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _wide(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values in the widest type of their kind."""
    return values.astype({"i": np.int64, "u": np.uint64, "f": np.float64}[values.dtype.kind], copy=False)


def _count_unsorted(matrix: sparse.csr_matrix) -> int:
    """Rows in which a column does not come after the one before it."""
    falls = np.flatnonzero(np.diff(matrix.indices) <= 0) + 1
    rows = np.searchsorted(matrix.indptr, falls, side="right") - 1
    return len(np.unique(rows[matrix.indptr[rows] != falls]))


class CompressedRows:
    """A CSR matrix whose three arrays lie in a file."""

    def __init__(self, values: Array, columns: Array, indptr: Array, *, shape: tuple[int, int]) -> None:
        """Raises ValueError where the three arrays and the shape do not fit each other."""
        self.shape = shape
        self.num_entries: int | None = int(values.shape[0])
        self._values, self._columns, self._indptr = values, columns, indptr
        if values.shape != columns.shape or len(values.shape) != 1:
            raise ValueError(f"data has shape {values.shape}, indices {columns.shape}")
        if indptr.shape != (shape[0] + 1,):
            raise ValueError(f"indptr has shape {indptr.shape}, but there are {shape[0]:,} rows")

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``; nothing else is read."""
        indptr = np.asarray(self._indptr[start : stop + 1]).astype(np.int64)
        first, last = int(indptr[0]), int(indptr[-1])
        if (np.diff(indptr) < 0).any():
            raise ValueError("the row pointers (indptr) fall")
        if first < 0 or last > self._values.shape[0]:
            raise ValueError(f"a row pointer is {max(last, -first):,}, but there are {self.num_entries:,} entries")
        values, columns = np.asarray(self._values[first:last]), np.asarray(self._columns[first:last])
        return RawRows(values, columns, indptr - first)

    def sample_values(self) -> None:
        """Rows are cheap here."""
        return


class DenseRows:
    """A dense matrix in a file, cells along its first axis or, as in loom, along its second."""

    def __init__(self, array: Array, *, cell_axis: int = 0) -> None:
        """Raises ValueError unless ``array`` has two axes."""
        if len(array.shape) != 2:
            raise UnreadableError(
                f"it has {len(array.shape)} axes, not two",
                remedy="Save a matrix of cells by genes, or name another one.",
            )
        self.shape = (int(array.shape[cell_axis]), int(array.shape[1 - cell_axis]))
        self.num_entries: int | None = None
        self._array, self._axis = array, cell_axis

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``, of which at most ``DENSE_PIECE_BYTES`` lie dense in memory at a time."""
        pieces = [self._sparse(first, last) for first, last in self._cell_pieces(start, stop)]
        if not pieces:
            nothing = plain_numbers(np.empty(0, self._array.dtype))
            return RawRows(nothing, np.empty(0, np.int32), np.zeros(1, np.int64))
        matrix = pieces[0] if len(pieces) == 1 else sparse.vstack(pieces, format="csr")
        return RawRows(matrix.data, matrix.indices, matrix.indptr.astype(np.int64))

    def sample_values(self) -> None:
        """Rows are cheap here."""
        return

    def _cell_pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The range cut into pieces, at borders of the stored chunks where these are not too high."""
        unit = self._chunk(self._axis)
        fitting = DENSE_PIECE_BYTES // max(1, self.shape[1] * self._array.dtype.itemsize)
        step = max(unit, fitting // unit * unit)
        cuts = [start, *range((start // step + 1) * step, stop, step), stop]
        return [(first, last) for first, last in itertools.pairwise(cuts) if first < last]

    def _sparse(self, first: int, last: int) -> sparse.csr_matrix:
        """One piece, read block by block along the genes if it is too large at once."""
        unit = self._chunk(1 - self._axis)
        fitting = DENSE_PIECE_BYTES // max(1, (last - first) * self._array.dtype.itemsize)
        step = max(unit, fitting // unit * unit)
        blocks = [
            self._block((first, last), (left, min(left + step, self.shape[1])))
            for left in range(0, self.shape[1], step)
        ]
        if not blocks:
            return sparse.csr_matrix((last - first, 0), dtype=np.float32)
        return blocks[0] if len(blocks) == 1 else sparse.hstack(blocks, format="csr")

    def _block(self, cells: tuple[int, int], genes: tuple[int, int]) -> sparse.csr_matrix:
        if self._axis == 0:
            dense = np.asarray(self._array[slice(*cells), slice(*genes)])
        else:
            dense = np.asarray(self._array[slice(*genes), slice(*cells)]).T
        return sparse.csr_matrix(plain_numbers(dense))

    def _chunk(self, axis: int) -> int:
        return int(self._array.chunks[axis]) if self._array.chunks else 1


class SelectedColumns:
    """Some columns of another matrix, in their order there."""

    def __init__(self, rows: RowSource, places: npt.NDArray[np.integer]) -> None:
        """``places`` are the columns kept, ascending."""
        self.shape = (rows.shape[0], len(places))
        self.num_entries: int | None = None
        self._rows = rows
        self._new = np.full(rows.shape[1], -1, np.int32)
        self._new[places] = np.arange(len(places), dtype=np.int32)

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop`` over the kept columns."""
        raw = self._rows.read(start, stop)
        if len(raw.columns) and not 0 <= raw.columns.min() <= raw.columns.max() < len(self._new):
            raise ValueError(f"a column index is beyond the {len(self._new):,} columns")
        columns = self._new[raw.columns]
        kept = columns >= 0
        before = np.concatenate([[0], np.cumsum(kept)])
        return RawRows(raw.values[kept], columns[kept], before[raw.indptr])

    def sample_values(self) -> npt.NDArray[Any] | None:
        """Those of the whole matrix."""
        return self._rows.sample_values()
