"""Get exact counts back from log-normalised values, where that is possible."""

# C cells, N non-zero values

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

RECOVERABLE_SAMPLE_SHARE = 0.95  # of a sample's cells, for a matrix to be called recoverable
_FLOAT32_TOLERANCE = 2e-6  # relative; a few units in the last place of log1p(count * scale)
_MAX_SMALLEST_COUNT = 5  # the smallest count of a cell is nearly always 1; beyond this the answer is ambiguous


def recover_counts(matrix: sparse.csr_matrix) -> tuple[sparse.csr_matrix, npt.NDArray[np.bool_]]:
    """Undo ``log1p(counts * scale_of_the_cell)``, cell by cell, for a (C, G) matrix.

    Returns the matrix with counts in the cells that came back, and a mask (C,) of those cells; the others keep
    their values. A cell comes back when one scale explains each of its values as an integer within the rounding
    the values were stored with.
    """
    recovered = matrix.copy()
    mask = np.zeros(matrix.shape[0], dtype=bool)
    tolerance = _rounding(matrix.data)
    for row in range(matrix.shape[0]):
        cell = slice(matrix.indptr[row], matrix.indptr[row + 1])
        counts = _recover_cell(matrix.data[cell].astype(np.float64), tolerance)
        if counts is not None:
            recovered.data[cell] = counts
            mask[row] = True
    return recovered, mask


def _rounding(values: npt.NDArray[np.float32]) -> float:
    """Half the last decimal the values were rounded to, or 0 when they were not rounded."""
    for decimals in (2, 3, 4, 5):
        if np.array_equal(np.round(values, decimals).astype(np.float32), values.astype(np.float32)):
            return float(0.51 * 10.0**-decimals)
    return 0.0


def _recover_cell(values: npt.NDArray[np.float64], tolerance: float) -> npt.NDArray[np.float64] | None:
    """Counts of one cell, or None if no scale makes them all integers."""
    if len(values) == 0:
        return values
    if values.min() <= 0 or not np.isfinite(values).all():
        return None
    distinct, where = np.unique(values, return_inverse=True)
    slack = np.maximum(tolerance, _FLOAT32_TOLERANCE * np.maximum(1.0, distinct))
    low, high = np.expm1(distinct - slack), np.expm1(distinct + slack)
    for smallest in range(1, _MAX_SMALLEST_COUNT + 1):
        counts = _fit(low, high, smallest)
        if counts is not None:
            return counts[where]
    return None


def _fit(low: npt.NDArray[np.float64], high: npt.NDArray[np.float64], smallest: int) -> npt.NDArray[np.float64] | None:
    """Counts for distinct values known to lie in [low, high] before scaling, if the smallest has count ``smallest``.

    Walks up the values, each narrowing the interval in which the scale must lie; None when it becomes empty.
    """
    scale_low, scale_high = low[0] / smallest, high[0] / smallest
    counts = np.empty(len(low))
    for i, (lower, upper) in enumerate(zip(low, high, strict=True)):
        counts[i] = np.rint((lower + upper) / (scale_low + scale_high))
        scale_low, scale_high = max(scale_low, lower / counts[i]), min(scale_high, upper / counts[i])
        if scale_low > scale_high:
            return None
    # Coarse rounding leaves several integers open for a large count: no exact count is better than a wrong one.
    if (np.floor(high / scale_low) > np.ceil(low / scale_high)).any():
        return None
    return counts
