"""Make cells of a predicted effect: control cells in which genes are detected and expressed as their new mean demands.

A pseudobulk effect has no cells, which tests of differential expression need. Each cell is a control cell, so that it
keeps the depth, state and covariation of real ones.
"""

# C cells, G genes

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

Float64 = npt.NDArray[np.float64]
_TINY = 1e-9
_MOST_DETECTED = 0.9999


def make_cells(control: sparse.csr_matrix, delta: Float64, *, num_cells: int, seed: int) -> sparse.csr_matrix:
    """Draw cells (num_cells, G) whose mean expression is that of the control cells (C, G) plus ``delta`` (G,).

    The share of cells in which a gene is detected follows a Poisson law: f = 1 - exp(-rate), and the rate changes as
    the mean does. What is left of the change scales the expressed values. A mean below 0 is taken as 0.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, control.shape[0], num_cells)
    values = np.asarray(control[chosen].todense(), np.float64)
    means = np.asarray(control.mean(axis=0), np.float64).ravel()
    wanted = np.maximum(means + delta, 0)
    detected = np.minimum(np.asarray((control > 0).mean(axis=0), np.float64).ravel(), _MOST_DETECTED)
    level = np.where(detected > 0, means / np.maximum(detected, _TINY), _lowest(control))
    ratio = wanted / np.maximum(means, _TINY)
    share = np.where(means > _TINY, 1 - np.exp(np.log1p(-detected) * ratio), wanted / np.maximum(level, _TINY))
    share = np.clip(share, 0, 1)
    kept = np.minimum(share / np.maximum(detected, _TINY), 1)
    added = np.clip((share - detected) / (1 - detected), 0, 1)
    draws = rng.random(values.shape)
    is_on = values > 0
    values[is_on & (draws >= kept)] = 0
    new = ~is_on & (draws < added)
    values[new] = np.broadcast_to(level, values.shape)[new]
    scale = np.where(share * level > _TINY, wanted / np.maximum(share * level, _TINY), 1)
    return sparse.csr_matrix(values * scale)


def _lowest(control: sparse.csr_matrix) -> float:
    """A usual smallest expression: that of one count in a usual cell."""
    return float(np.quantile(control.data, 0.1)) if control.nnz else 1.0
