"""Cells as a shallower sequencing would have seen them, and samples of their genes to decode, zeros included.

Both are pure functions of a key for each cell. Thinning keeps each molecule (UMI) with the same chance, so a gene's
count becomes binomial.
"""

# C cells, N non-zero entries over all cells, Q = 2 * most queries of a cell, P genes of a panel

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytoray.tokens.cells import Float32, Int32, Int64, SparseCells, UInt64
from cytoray.tokens.coding import UInt32, mix_into
from cytoray.tokens.compiling import Scalar, as_input, compiled
from cytoray.tokens.keys import Float64
from cytoray.tokens.packed import PackedCells, pack, packed_counts, packed_gene_ids

_HALF = np.uint64(32)
SCALE = 1e4  # counts are compared per so many


@dataclass(frozen=True, eq=False)
class Queries:
    """Genes of C cells whose expression is to be decoded; of the Q places of a cell the first ``lengths`` are used."""

    gene_ids: Int32  # (C, Q)
    values: Float32  # (C, Q) log(1 + counts per 10,000)
    weights: Float32  # (C, Q) inverse chances of being drawn, 1 on average over a cell
    lengths: Int64  # (C,)


def thin(cells: PackedCells, *, keys: UInt64, shares: Float64) -> PackedCells:
    """Return the cells with each molecule kept with the chance ``shares`` (C,), by ``keys`` (C,); without bins."""
    assert cells.holds_counts, "only counts can be thinned"
    gene_ids, counts = packed_gene_ids(cells), packed_counts(cells)
    kept = np.empty(len(counts), np.uint32)
    thresholds = (np.asarray(shares) * 2.0**32).astype(np.uint64)
    inputs = as_input(gene_ids, np.int32), as_input(counts, np.uint32), as_input(cells.indptr, np.int64)
    _thin(*inputs, as_input(keys, np.uint64), as_input(thresholds, np.uint64), kept)
    left = kept > 0
    indptr = np.concatenate([[0], np.cumsum(left)])[cells.indptr].astype(np.int64)
    return pack(SparseCells(gene_ids[left], kept[left].astype(np.float32), indptr, cells.cell_ids))


def draw_queries(cells: PackedCells, panel: Int32, *, keys: UInt64, most: int) -> Queries:
    """Draw up to ``most`` expressed genes of the sorted ``panel`` (P,) for each cell, and as many that are zero."""
    shape = (cells.num_cells, 2 * most)
    gene_ids, values = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    weights, lengths = np.zeros(shape, np.float32), np.empty(cells.num_cells, np.int64)
    inputs = as_input(packed_gene_ids(cells), np.int32), as_input(packed_counts(cells).astype(np.float64), np.float64)
    _draw_queries(
        *inputs, as_input(cells.indptr, np.int64), as_input(keys, np.uint64), as_input(panel, np.int32), gene_ids,
        values, weights, lengths,
    )  # fmt: skip
    return Queries(gene_ids, values, weights, lengths)


@compiled
def _thin(gene_ids: Int32, counts: UInt32, indptr: Int64, keys: UInt64, thresholds: UInt64, kept: UInt32) -> None:
    """Write the kept count of each entry (N,)."""
    for cell in range(indptr.size - 1):
        for entry in range(indptr[cell], indptr[cell + 1]):
            word = mix_into(keys[cell], np.uint64(gene_ids[entry]))
            number = np.uint32(0)
            for molecule in range(counts[entry]):
                number += np.uint32(mix_into(word, np.uint64(molecule)) >> _HALF < thresholds[cell])
            kept[entry] = number


@compiled
def _draw_queries(
    genes: Int32, counts: Float64, indptr: Int64, keys: UInt64, panel: Int32, gene_ids: Int32, values: Float32,
    weights: Float32, lengths: Int64,
) -> None:  # fmt: skip
    """Fill the rows of ``Queries`` cell by cell; both kinds of genes are drawn by Knuth's Algorithm S."""
    most = gene_ids.shape[1] // 2
    for cell in range(indptr.size - 1):
        total, expressed, place = 0.0, 0, 0
        for number in range(indptr[cell], indptr[cell + 1]):
            total += counts[number]
            while place < panel.size and panel[place] < genes[number]:
                place += 1
            expressed += place < panel.size and panel[place] == genes[number]
        absent = panel.size - expressed
        drawn = min(expressed, most)
        zeros = min(drawn, absent)
        size, end = drawn + zeros, 0
        need, left, need_zeros, left_zeros = drawn, expressed, zeros, absent
        entry: Scalar = indptr[cell]
        for gene in panel:
            while entry < indptr[cell + 1] and genes[entry] < gene:
                entry += 1
            chance = np.float64(mix_into(keys[cell], np.uint64(gene)) >> _HALF) / 2.0**32
            if entry < indptr[cell + 1] and genes[entry] == gene:
                if chance * left < need:
                    gene_ids[cell, end], values[cell, end] = gene, np.log1p(counts[entry] * SCALE / total)
                    weights[cell, end] = expressed / drawn * size / panel.size
                    end, need = end + 1, need - 1
                left -= 1
            else:
                if chance * left_zeros < need_zeros:
                    gene_ids[cell, end], values[cell, end] = gene, 0.0
                    weights[cell, end] = absent / zeros * size / panel.size
                    end, need_zeros = end + 1, need_zeros - 1
                left_zeros -= 1
        lengths[cell] = size
