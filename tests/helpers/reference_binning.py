"""Bin each cell's expression into ranks, so that studies of different depth compare."""

# C cells, N non-zero entries over all cells, E = n_bins - 1 quantile edges of a cell, R runs of equal values in a cell

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Float32, Int64, SparseCells
from cytoray.tokens.keys import Float64

Int16 = npt.NDArray[np.int16]


def bin_values(cells: SparseCells, uniforms: Float64, *, n_bins: int = 51) -> Int16:
    """Bin every value among its own cell's values: bins 1 .. ``n_bins - 1``, shape (N,), in the order of the entries.

    The edges are the cell's quantiles at ``linspace(0, 1, n_bins - 1)``, bit for bit those of ``np.quantile``. A value
    equal to several edges takes one of their bins, chosen by its entry of ``uniforms`` (shape (N,), in [0, 1)):
    ``ceil(upto - u * (upto - below))``, where ``below`` edges are smaller than it and ``upto`` are not greater.
    """
    assert uniforms.shape == cells.values.shape, "one uniform number for each value"
    occupied = cells.num_genes_per_cell > 0
    starts, lengths = cells.indptr[:-1][occupied], cells.num_genes_per_cell[occupied]
    # Positive float32 order like their bits, so one 64-bit sort puts cell after cell in ascending order.
    rows = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    order = np.argsort((rows << np.uint64(32)) | cells.values.view(np.uint32))
    ascending = cells.values[order]

    new_run = np.ones(len(ascending), bool)
    new_run[1:] = ascending[1:] != ascending[:-1]
    new_run[starts] = True
    first = np.flatnonzero(new_run)
    run_lengths = np.diff(first, append=len(ascending))
    at_most, greater = _edge_positions(ascending, starts, lengths, n_bins - 1)
    below = _edges_before(greater, starts, lengths)[first]
    upto = _edges_before(at_most, starts, lengths)[first + run_lengths - 1]

    spread, top = np.repeat(below - upto, run_lengths), np.repeat(upto, run_lengths)
    bins = np.empty(len(ascending), np.int16)
    bins[order] = np.ceil(uniforms[order] * spread + top)
    return bins


def _edge_positions(ascending: Float32, starts: Int64, lengths: Int64, num_edges: int) -> tuple[Int64, Int64]:
    """Where the edges of each cell fall among its ascending values, both (C, E), counted from the cell's start.

    The first array tells the first position whose value the edge does not exceed, the second one the first position
    whose value exceeds the edge; within a run of equal values either may name a later member of the run.
    """
    # Rank arithmetic would put an edge on a value where NumPy's float position (n - 1) * q falls a hair short of an
    # integer and the edge lands below it; so position and interpolation are NumPy's own expressions, dtypes included.
    positions = (lengths[:, None] - 1) * np.linspace(0, 1, num_edges)
    left = np.floor(positions).astype(np.int64)
    right = np.minimum(left + 1, lengths[:, None] - 1)
    low, high = ascending[starts[:, None] + left], ascending[starts[:, None] + right]
    weight, step = positions - left, high - low
    edges = np.where(weight >= 0.5, high - step * (1 - weight), low + step * weight)
    return left + (edges > low), left + 1 + (edges >= high)


def _edges_before(positions: Int64, starts: Int64, lengths: Int64) -> Int64:
    """For each of the N ascending entries, the number of its cell's edges with a position (C, E) up to its own."""
    inside = positions < lengths[:, None]
    counts = np.bincount((starts[:, None] + positions)[inside], minlength=int(lengths.sum()))
    total = np.cumsum(counts)
    return total - np.repeat(total[starts] - counts[starts], lengths)
