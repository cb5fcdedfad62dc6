"""Restore exact counts from log-normalised values, if possible."""

# C cells, N non-zero values, D distinct values of a cell

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.tokens.compiling import compiled

RECOVERABLE_SAMPLE_SHARE = 0.95  # of a sample's cells, for a matrix to count as recoverable
_FLOAT32_TOLERANCE = 2e-6  # relative; a few units in the last place of log1p(count * scale)
_MAX_SMALLEST_COUNT = 5  # the smallest count of a cell is nearly always 1; beyond this the answer is ambiguous
_LARGEST_LOGARITHM = 80.0  # of a value; exp of it is beyond any count, and below what overflows
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def recover_counts(matrix: sparse.csr_matrix) -> tuple[sparse.csr_matrix, npt.NDArray[np.bool_]]:
    """Undo ``log1p(counts * scale_of_the_cell)``, cell by cell, for a (C, G) matrix.

    Returns the matrix with counts in the cells that were restored, and a mask (C,) of those cells; the others keep
    their values. A cell is restored if one scale explains each of its values as an integer within the rounding
    the values were stored with.
    """
    recovered = matrix.copy()
    mask = np.zeros(matrix.shape[0], dtype=bool)
    longest = int(np.diff(matrix.indptr).max(initial=0))
    slots = np.full(2 ** max(1, (2 * longest - 1).bit_length()), -1, np.int32)
    scratch = (slots, np.empty(longest, np.int32), np.empty((4, longest), np.float64), np.empty(longest, np.int32))
    _recover(matrix.data, matrix.indptr, _rounding(matrix.data), recovered.data, mask, scratch)
    return recovered, mask


def _rounding(values: npt.NDArray[Any]) -> float:
    """Half the last decimal the values were rounded to, or 0 if they were not rounded."""
    for decimals in (2, 3, 4, 5):
        if all(
            np.array_equal(np.round(part, decimals).astype(np.float32), part.astype(np.float32))
            for part in (values[:1000], values)  # a few nearly always suffice to rule it out
        ):
            return float(0.51 * 10.0**-decimals)
    return 0.0


@compiled
def _recover(
    data: npt.NDArray[Any],
    indptr: npt.NDArray[Any],
    rounding: float,
    recovered: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    scratch: Any,
) -> None:  # pragma: no cover - compiled
    """Recover every cell that can be, into ``recovered`` and ``mask``."""
    slots, used, distinct_4D, places = scratch
    for row in range(len(mask)):
        values = data[indptr[row] : indptr[row + 1]]
        num_distinct = _find_distinct(values, slots, used, distinct_4D[0], places)
        if num_distinct < 0:
            continue
        order = np.argsort(distinct_4D[0, :num_distinct])
        if not _fit(distinct_4D[:, :num_distinct], order, rounding):
            continue
        mask[row] = True
        for entry in range(len(values)):
            recovered[indptr[row] + entry] = distinct_4D[3, places[entry]]


@compiled
def _find_distinct(
    values: npt.NDArray[Any],
    slots: npt.NDArray[np.int32],
    used: npt.NDArray[np.int32],
    distinct: npt.NDArray[np.float64],
    places: npt.NDArray[np.int32],
) -> int:  # pragma: no cover - compiled
    """Number the distinct values of a cell by a hash table, a tenth of a sort's cost; -1 if one is not a logarithm."""
    mask = np.uint64(len(slots) - 1)
    count = 0
    good = True
    for entry in range(len(values)):
        value = np.float64(values[entry])
        if not (value > 0.0 and value < _LARGEST_LOGARITHM):
            good = False
            break
        slot = _slot(value, mask)
        while slots[slot] >= 0 and distinct[slots[slot]] != value:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] < 0:
            slots[slot] = count
            used[count] = slot
            distinct[count] = value
            count += 1
        places[entry] = slots[slot]
    for number in range(count):
        slots[used[number]] = -1
    return count if good else -1


@compiled
def _slot(value: float, mask: Any) -> Any:  # pragma: no cover - compiled
    """Where a value's search in the hash table starts."""
    bits = np.float64(value).view(np.uint64)
    return ((bits * _GOLDEN) >> np.uint64(32)) & mask


@compiled
def _fit(
    distinct_4D: npt.NDArray[np.float64], order: npt.NDArray[np.int64], rounding: float
) -> bool:  # pragma: no cover - compiled
    """Find counts for the distinct values in row 0, with the smallest possible count of the smallest; into row 3.

    Rows 1 and 2 take the interval in which each value lies before scaling.
    """
    for number in range(len(order)):
        value = distinct_4D[0, number]
        slack = max(rounding, _FLOAT32_TOLERANCE * max(1.0, value))
        distinct_4D[1, number], distinct_4D[2, number] = math.expm1(value - slack), math.expm1(value + slack)
    if len(order) == 0:
        return True
    for smallest in range(1, _MAX_SMALLEST_COUNT + 1):
        if _fit_smallest(distinct_4D[1], distinct_4D[2], distinct_4D[3], order, smallest):
            return True
    return False


@compiled
def _fit_smallest(
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    counts: npt.NDArray[np.float64],
    order: npt.NDArray[np.int64],
    smallest: int,
) -> bool:  # pragma: no cover - compiled
    """Whether all values (D,) are integers times one scale, if the smallest one's count is ``smallest``.

    Walks up the values, each narrowing the interval in which the scale must lie, until that becomes empty.
    """
    scale_low, scale_high = low[order[0]] / smallest, high[order[0]] / smallest
    for number in order:
        counts[number] = np.rint((low[number] + high[number]) / (scale_low + scale_high))
        scale_low = max(scale_low, low[number] / counts[number])
        scale_high = min(scale_high, high[number] / counts[number])
        if scale_low > scale_high:
            return False
    # Coarse rounding leaves several integers open for a large count: no exact count is better than a wrong one.
    for number in order:  # noqa: SIM110 - compiled code has no generators
        if np.floor(high[number] / scale_low) > np.ceil(low[number] / scale_high):
            return False
    return True
