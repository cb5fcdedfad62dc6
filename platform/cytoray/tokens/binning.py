"""Bin each cell's expression by rank, so that studies of different sequencing depth are comparable.

The edges of a cell are the quantiles of its values at ``linspace(0, 1, n_bins - 1)``, bit for bit those of
``np.quantile``; a value equal to several edges is put into one of their bins at random. An edge that equals no value
lies strictly between two neighbouring values, so the possible bins of a value depend on its rank alone: they are found
from a histogram of the counts, without quantiles and, below 255, without sorting.
"""

# N values of a cell, E = n_bins - 1 edges

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cytoray.tokens.cells import Float32, Int64, UInt64
from cytoray.tokens.coding import ESCAPE, UInt8, UInt32, sort_words
from cytoray.tokens.compiling import Scalar, as_input, compiled
from cytoray.tokens.keys import Float64

TIE_BITS = 24
_PLACE = np.uint64(2**32 - 1)


class Workspace(NamedTuple):
    """Scratch memory of one call, for cells of up to ``len(spreads)`` genes."""

    histogram: UInt32  # (4 * 256,)
    table: UInt32  # (256,) spread of each count below 255
    words: UInt64  # (2 * N,) uint64, for sorting
    spreads: UInt32  # (N,)


def bin_rows(values: Float32, indptr: Int64, *, n_bins: int = 51, draws: Float64 | None = None) -> Int64:
    """Return the bins (N,), 1 .. n_bins - 1, of the values above zero of C cells in compressed rows, in the same order.

    A value equal to edges i .. j is put into one of their bins by ``draws`` (N,), uniform in [0, 1). By default NumPy's
    global generator draws one number per value, row by row, which gives the same bins as the original, bit for bit.
    """
    assert not len(values) or values.min() > 0, "values must be greater than zero"
    spreads = np.empty(len(values), np.uint32)
    rows = as_input(values, np.float32), as_input(indptr, np.int64)
    _spread_rows(*rows, np.linspace(0, 1, n_bins - 1), spreads)
    upto, width = (spreads & 0xFFFF).astype(np.int64), (spreads >> 16).astype(np.int64)
    drawn = np.random.rand(len(values)) if draws is None else draws  # noqa: NPY002 - the original's generator
    return np.ceil(drawn * -width + upto).astype(np.int64)


@compiled
def _spread_rows(values: Float32, indptr: Int64, quantiles: Float64, spreads: UInt32) -> None:
    """Compute the spread (see ``spread_of_run``) of each value of each row."""
    room = 1
    for row in range(indptr.size - 1):
        room = max(room, indptr[row + 1] - indptr[row])
    work = make_workspace(room)
    for row in range(indptr.size - 1):
        start, stop = indptr[row], indptr[row + 1]
        if stop > start:
            spread_expression(values[start:stop], quantiles, work)
            spreads[start:stop] = work.spreads[: stop - start]


@compiled
def make_workspace(max_genes: int) -> Workspace:
    """Allocate scratch memory for cells of up to ``max_genes`` genes."""
    return Workspace(
        np.zeros(1024, np.uint32), np.zeros(256, np.uint32), np.empty(2 * max_genes, np.uint64),
        np.empty(max_genes, np.uint32),
    )  # fmt: skip


@compiled
def spread_of_run(
    first: int, last: int, size: int, quantiles: Float64, value: float, step_before: float, step_after: float
) -> Scalar:
    """Return the possible bins of equal values at the sorted positions ``first`` .. ``last`` of ``size``.

    The result is ``upto | (upto - below) << 16``: ``below`` edges are smaller than the value and ``upto`` are not
    greater. ``step_before`` and ``step_after`` are the distances to the neighbouring values.
    """
    top, span = np.uint64(quantiles.size - 1), np.uint64(size - 1)
    if span == 0 or top == 0:  # a single value equals all edges; a single edge is the smallest value
        below, upto = np.uint64(first > 0), np.uint64(quantiles.size)
        return np.uint32(upto | (upto - below) << np.uint64(16))
    # Edge k lies at position k * span / top. If that is an integer, NumPy's float position may be slightly off, and the
    # edge then differs from the value if the neighbour on that side does: so compare in floats, as NumPy does.
    place = np.uint64(first) * top
    below = (place + span - np.uint64(1)) // span
    if first > 0 and below * span == place:
        position = np.float64(span) * quantiles[below]
        if position < first and value - step_before * (1.0 - (position - (first - 1))) < value:
            below += np.uint64(1)
    place = np.uint64(last) * top
    upto = place // span + np.uint64(1)
    if last < size - 1 and (upto - np.uint64(1)) * span == place:
        position = np.float64(span) * quantiles[upto - np.uint64(1)]
        if position > last and value + step_after * (position - last) > value:
            upto -= np.uint64(1)
    return np.uint32(upto | (upto - below) << np.uint64(16))


@compiled
def spread_counts(counts: UInt8, large: UInt32, quantiles: Float64, work: Workspace) -> None:
    """Write the spread (see ``spread_of_run``) of each count into ``work.spreads``; 255 means the next of ``large``."""
    size, num_large = counts.size, large.size
    if num_large > 0:
        _sort_keys(large, work.words)
    least_large: Scalar = np.int64(work.words[0] >> np.uint64(32)) if num_large > 0 else np.int64(0)
    _count(counts, work.histogram)
    greatest = _spread_histogram(size, num_large, least_large, quantiles, work)
    table, spreads = work.table, work.spreads[:size]
    for place in range(size):
        spreads[place] = table[counts[place]]
    if num_large > 0:
        large_spreads = np.empty(num_large, np.uint32)
        _spread_sorted(large, work.words, size, np.uint32(greatest), quantiles, large_spreads)
        taken = 0
        for place in range(size):
            if counts[place] == ESCAPE and taken < num_large:
                spreads[place] = large_spreads[taken]
                taken += 1


@compiled
def spread_expression(values: Float32, quantiles: Float64, work: Workspace) -> None:
    """Write the spread (see ``spread_of_run``) of each value of a cell into ``work.spreads``."""
    _sort_keys(values.view(np.uint32), work.words)  # positive floats have the same order as their bits
    _spread_sorted(values, work.words, values.size, np.float32(0), quantiles, work.spreads)


@compiled
def _spread_histogram(size: int, num_large: int, after_last: int, quantiles: Float64, work: Workspace) -> Scalar:
    """Write the spreads of the counts below 255 into ``work.table``; returns the greatest of these counts, or 0."""
    before: Scalar = np.int64(0)
    value: Scalar = np.int64(0)
    first: Scalar = np.int64(0)
    seen: Scalar = np.int64(0)
    # The next value is known only at the next count that occurs, so each run is completed there.
    for count in range(1, ESCAPE + 1):
        here = np.int64(work.histogram[count]) if count < ESCAPE else np.int64(1)
        if here == 0:
            continue
        if value > 0:
            step_after = np.float64((count if count < ESCAPE else after_last) - value)
            work.table[value] = spread_of_run(
                first, seen - 1, size, quantiles, np.float64(value), np.float64(value - before), step_after
            )
        if count < ESCAPE:
            before, value, first = value, np.int64(count), seen
        seen += here
    return value


@compiled
def _spread_sorted(values: Any, words: UInt64, size: int, before: Scalar, quantiles: Float64, spreads: UInt32) -> None:
    """Compute the spreads of the greatest ``len(values)`` of ``size`` values from their sorted ``key << 32 | place``.

    ``before`` is the greatest smaller value. Differences are computed in the type of the values, as in NumPy.
    """
    first: Scalar = 0
    offset = size - values.size
    while first < values.size:
        value = values[words[first] & _PLACE]
        stop = first + 1
        while stop < values.size and words[stop] >> np.uint64(32) == words[first] >> np.uint64(32):
            stop += 1
        after = values[words[stop] & _PLACE] if stop < values.size else value
        spread = spread_of_run(
            offset + first, offset + stop - 1, size, quantiles, np.float64(value), np.float64(value - before),
            np.float64(after - value),
        )  # fmt: skip
        for place in range(first, stop):
            spreads[words[place] & _PLACE] = spread
        before, first = value, stop


@compiled
def _count(counts: UInt8, histogram: UInt32) -> None:
    """Write a histogram of ``counts`` into the first 256 entries; four tables avoid waits at equal neighbours."""
    histogram[:] = 0
    size = counts.size
    whole = size - size % 4
    for place in range(0, whole, 4):
        histogram[np.uint64(counts[place])] += np.uint32(1)
        histogram[np.uint64(counts[place + 1]) + np.uint64(256)] += np.uint32(1)
        histogram[np.uint64(counts[place + 2]) + np.uint64(512)] += np.uint32(1)
        histogram[np.uint64(counts[place + 3]) + np.uint64(768)] += np.uint32(1)
    for place in range(whole, size):
        histogram[np.uint64(counts[place])] += np.uint32(1)
    for value in range(256):
        histogram[value] += histogram[value + 256] + histogram[value + 512] + histogram[value + 768]


@compiled
def _sort_keys(keys: UInt32, words: UInt64) -> None:
    """Write the sorted ``key << 32 | place`` of the N ``keys`` into the first N of ``words``."""
    for place in range(keys.size):
        words[place] = np.uint64(keys[place]) << np.uint64(32) | np.uint64(place)
    sort_words(words[: 2 * keys.size], 32)
