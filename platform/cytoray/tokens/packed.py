"""Cells as byte streams, the storage format of a corpus: gap-coded gene ids and one-byte counts."""

# C cells, N non-zero entries over all cells, M counts of 255 and more, G genes of a data set

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.tokens import coding, recoding
from cytoray.tokens.cells import Float32, Int32, Int64, SparseCells, UInt64
from cytoray.tokens.coding import ESCAPE, UInt8, UInt32
from cytoray.tokens.compiling import as_input
from cytoray.tokens.keys import combine

MAX_COUNT = 2**32 - 1
FULL_TABLE = 0.97  # a table is kept if at least this share of its genes occurs: recoding takes 6 us per cell


@dataclass(frozen=True, eq=False)
class PackedCells:
    """C cells with entries in ascending order of gene id and values greater than zero.

    Gene stream of a cell: gap = id - previous id - 1 (previous = -1 at its start); while gap >= 255 a byte 255 and
    gap -= 255; then the byte gap. Count stream: one byte per gene, 255 meaning the next entry of ``large``.
    Expression other than counts is one float32 per gene in ``values``, and ``large`` is empty.

    If there is a ``table``, the gene streams hold indices into it instead of gene ids; see ``tokens.recoding``.
    """

    genes: UInt8  # gap streams, cell after cell
    values: UInt8 | Float32  # (N,)
    large: UInt32  # (M,)
    gene_starts: Int64  # (C + 1,) into genes
    indptr: Int64  # (C + 1,) into values
    large_starts: Int64  # (C + 1,) into large
    cell_ids: UInt64  # (C,)
    bins: UInt8 | None = None  # (N,) if bins are stored
    table: Int32 | None = None  # (G,) ascending gene ids, if the streams hold indices into it

    def __repr__(self) -> str:
        """Return the numbers of cells and values only, since the arrays are long."""
        return f"PackedCells({self.num_cells:,} cells, {len(self.values):,} values)"

    @property
    def num_cells(self) -> int:
        """Number of cells C."""
        return len(self.cell_ids)

    @property
    def num_genes_per_cell(self) -> Int64:
        """Number of expressed genes of each cell, shape (C,)."""
        return np.diff(self.indptr)

    @property
    def holds_counts(self) -> bool:
        """Whether values are counts rather than expression."""
        return self.values.dtype == np.uint8


def pack(cells: SparseCells, *, counts: bool = True) -> PackedCells:
    """Pack sparse cells, as ``counts`` or as expression; raises ValueError like ``pack_rows``."""
    identity = np.arange(int(cells.gene_ids.max(initial=-1)) + 1, dtype=np.int32)
    return _pack((cells.values, cells.gene_ids, cells.indptr), identity, cells.cell_ids, counts=counts)


def pack_rows(
    matrix: Any, gene_ids: Int32, cell_ids: UInt64, *, counts: bool, table: Int32 | None = None
) -> PackedCells:
    """Pack the C rows of a scipy CSR matrix (C, G), whose column g holds gene ``gene_ids[g]`` (-1: unknown, dropped).

    Columns may come in any order; several columns of one gene are summed, zeros dropped. Values must be finite and
    not negative. With ``counts`` each must be an integer, and ValueError names the first row in which one is not or
    a gene's sum exceeds 4,294,967,295. With a ``table`` of ascending gene ids, which contains all of
    ``gene_ids``, the streams hold indices into it.
    """
    assert matrix.shape == (len(cell_ids), len(gene_ids)), "one id for each row, one gene id for each column"
    if table is not None:
        gene_ids = recoding.places_in(table, gene_ids)
    packed = _pack((matrix.data, matrix.indices, matrix.indptr), gene_ids, cell_ids, counts=counts)
    return replace(packed, table=table)


def unpack(packed: PackedCells) -> SparseCells:
    """Return the same cells as sparse rows; counts above 2**24 are rounded to float32."""
    values = packed_counts(packed).astype(np.float32)
    return SparseCells(packed_gene_ids(packed), values, packed.indptr, packed.cell_ids)


def packed_counts(packed: PackedCells) -> UInt32 | Float32:
    """Return the exact values, shape (N,): uint32 for counts, else float32."""
    if not packed.holds_counts:
        return packed.values.astype(np.float32, copy=False)
    values = packed.values.astype(np.uint32)
    if len(packed.large):
        values[packed.values == ESCAPE] = packed.large
    return values


def packed_gene_ids(packed: PackedCells) -> Int32:
    """Return the gene ids, shape (N,), ascending within a cell."""
    gene_ids = np.empty(len(packed.values), np.int32)
    num_decoded = coding.decode_genes(*_gene_streams(packed), gene_ids)
    assert num_decoded == len(gene_ids), "gene streams and indptr disagree"
    return gene_ids if packed.table is None else packed.table[gene_ids]


def with_table(packed: PackedCells) -> PackedCells:
    """Recode the streams as indices into a table of the genes that occur; a table that is hardly larger is kept."""
    occurring = recoding.genes_that_occur(packed.genes, packed.gene_starts)
    if packed.table is not None and len(occurring) >= FULL_TABLE * len(packed.table):
        return packed
    genes, gene_starts = recoding.number_genes(packed.genes, packed.gene_starts, occurring)
    table = occurring if packed.table is None else packed.table[occurring]
    return replace(packed, genes=genes, gene_starts=gene_starts, table=table)


def without_table(packed: PackedCells) -> PackedCells:
    """Recode the streams as gene ids."""
    if packed.table is None:
        return packed
    genes, gene_starts = recoding.name_genes(packed.genes, packed.gene_starts, packed.table)
    return replace(packed, genes=genes, gene_starts=gene_starts, table=None)


def with_genes(packed: PackedCells, table: Int32) -> PackedCells:
    """The same cells over other gene ids: gene g becomes ``table[g]``, or is left out if that is -1.

    Genes with one new id are summed. Stored bins are left out: they were ranks among all genes.
    """
    rows = (packed_counts(packed), packed_gene_ids(packed), packed.indptr)
    return _pack(rows, table, packed.cell_ids, counts=packed.holds_counts)


def take(packed: PackedCells, rows: npt.NDArray[np.integer]) -> PackedCells:
    """Return the cells at ``rows`` (shape (R,)), in that order; a row may be taken more than once."""
    places = np.asarray(rows, np.int64)
    assert not len(places) or places.min() >= 0, "rows must not be negative"
    genes, gene_starts = _take(packed.genes, packed.gene_starts, places)
    values, indptr = _take(packed.values, packed.indptr, places)
    large, large_starts = _take(packed.large, packed.large_starts, places)
    bins = None if packed.bins is None else _take(packed.bins, packed.indptr, places)[0]
    ids = packed.cell_ids[places]
    return PackedCells(genes, values, large, gene_starts, indptr, large_starts, ids, bins, packed.table)


def concatenate(parts: Sequence[PackedCells]) -> PackedCells:
    """Concatenate cells (at least one part); all or none must be counts, and all or none must have stored bins."""
    assert len({(part.holds_counts, part.bins is None) for part in parts}) == 1, "parts must be of one kind"
    if len({id(part.table) for part in parts}) > 1:
        parts = [without_table(part) for part in parts]
    bins = [part.bins for part in parts if part.bins is not None]
    return PackedCells(
        np.concatenate([part.genes for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.large for part in parts]),
        _join_starts([part.gene_starts for part in parts]),
        _join_starts([part.indptr for part in parts]),
        _join_starts([part.large_starts for part in parts]),
        np.concatenate([part.cell_ids for part in parts]),
        np.concatenate(bins) if bins else None,
        parts[0].table,
    )


def only_genes(packed: PackedCells, gene_ids: Int32) -> PackedCells:
    """The same cells with only these genes; stored bins, which were those among all genes, are dropped."""
    there = packed_gene_ids(packed)
    wanted = np.zeros(int(max(gene_ids.max(initial=-1), there.max(initial=-1))) + 1, bool)
    wanted[gene_ids] = True
    kept = wanted[there]
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])[packed.indptr]
    rows = (packed_counts(packed)[kept], there[kept], indptr)
    return _pack(rows, np.arange(len(wanted), dtype=np.int32), packed.cell_ids, counts=packed.holds_counts)


def content_hashes(packed: PackedCells) -> UInt64:
    """Hash each cell's (gene id, value) pairs, shape (C,): ``keys.content_keys`` of the unpacked cells."""
    table = np.empty(0, np.int32) if packed.table is None else packed.table
    counts: npt.NDArray[Any] = np.empty(0, np.uint8)
    wide, starts = packed.values, packed.indptr
    if packed.holds_counts:
        counts, wide, starts = packed.values, packed.large.astype(np.float32), packed.large_starts
    bits = np.arange(256, dtype=np.float32).view(np.uint32)
    values = (as_input(counts, np.uint8), as_input(wide.view(np.uint32), np.uint32), as_input(starts, np.int64), bits)
    sums = np.empty(packed.num_cells, np.uint64)
    coding.sum_entry_hashes(*_gene_streams(packed), as_input(table, np.int32), values, sums)
    return combine(sums, packed.num_genes_per_cell)


def with_bins(packed: PackedCells, bins: npt.NDArray[np.integer]) -> PackedCells:
    """Return the same cells with stored ``bins`` (shape (N,), 0 .. 255)."""
    assert bins.shape == packed.values.shape, "one bin for each value"
    assert not len(bins) or (bins.min() >= 0 and bins.max() <= 255), "stored bins take one byte"
    return replace(packed, bins=bins.astype(np.uint8))


def _pack(
    rows: tuple[npt.NDArray[Any], npt.NDArray[np.integer], npt.NDArray[np.integer]],
    gene_ids: Int32,
    cell_ids: UInt64,
    *,
    counts: bool,
) -> PackedCells:
    """Pack CSR rows (values, columns, indptr); see ``pack_rows``."""
    values, columns, starts = rows
    num_cells = len(cell_ids)
    num_genes, num_entries = int(gene_ids.max(initial=-1)) + 1, int(starts[-1] - starts[0])
    assert num_genes < coding.MAX_GENES, "gene ids take 28 bits"
    # Upper bounds: pages that are never written take no memory.
    genes = np.empty(num_entries + num_cells * (num_genes // ESCAPE + 1), np.uint8)
    narrow = np.empty(num_entries if counts else 0, np.uint8)
    large = np.empty(num_entries if counts else 0, np.uint32)
    expression = np.empty(0 if counts else num_entries, np.float32)
    ends = np.zeros((3, num_cells + 1), np.int64)
    matrix = (
        as_input(values, _plain_type(values.dtype)),
        as_input(columns, np.int32),
        as_input(starts, np.int64),
        as_input(gene_ids, np.int32),
    )
    bad = coding.encode_rows(matrix, num_genes, (genes, narrow, large, expression), ends, counts)
    if bad >= 0:
        raise ValueError(f"row {bad} holds a value that is not a count (an integer up to {MAX_COUNT:,})")
    stream = narrow if counts else expression
    return PackedCells(
        genes[: ends[0, -1]].copy(),
        stream[: ends[1, -1]].copy(),
        large[: ends[2, -1]].copy(),
        ends[0],
        ends[1],
        ends[2],
        cell_ids,
    )


def _plain_type(kind: np.dtype[Any]) -> np.dtype[Any]:
    """Return which of four types holds all numbers of ``kind``; kernels are compiled for these types only."""
    narrow = kind.itemsize < (8 if kind.kind == "f" else 4) or kind == np.int32
    if kind.kind == "f":
        return np.dtype(np.float32 if narrow else np.float64)
    return np.dtype(np.int32 if narrow else np.int64)


def _gene_streams(packed: PackedCells) -> tuple[UInt8, Int64, Int64]:
    """Return the arrays from which kernels decode gene ids."""
    return (
        as_input(packed.genes, np.uint8),
        as_input(packed.gene_starts, np.int64),
        as_input(packed.indptr, np.int64),
    )


def _take(stream: npt.NDArray[Any], starts: Int64, rows: Int64) -> tuple[npt.NDArray[Any], Int64]:
    """Return the parts of ``stream`` that belong to ``rows``, concatenated, and their starts."""
    taken = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(starts[rows + 1] - starts[rows], out=taken[1:])
    target = np.empty(taken[-1], stream.dtype)
    coding.copy_parts(as_input(stream, stream.dtype), as_input(starts, np.int64), as_input(rows, np.int64), target)
    return target, taken


def _join_starts(parts: list[Int64]) -> Int64:
    """Return the starts in concatenated streams."""
    lengths = np.concatenate([np.diff(part) for part in parts])
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
