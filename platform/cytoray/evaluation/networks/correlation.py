"""Correlation of transcription factors with targets, without what the depth of cells adds to it.

Covariances of residuals follow from those of expression: cov(x, y) - slope(x) slope(y), with depth of variance 1. Only
stored values are multiplied, so cells stay sparse; a block of targets at a time bounds the memory.
"""

# T transcription factors, B targets of a block

from __future__ import annotations

import numpy as np

from cytoray.evaluation.networks.cells import SMALLEST, Float32, NetworkCells


def correlate(tfs: NetworkCells, targets: NetworkCells) -> Float32:
    """Return the correlation of each factor with each target over the same cells, (T, B); 0 if a gene is constant."""
    products = np.asarray((tfs.expression.T @ targets.expression).todense(), np.float64) / max(tfs.num_cells, 1)
    covariance = products - np.outer(tfs.means, targets.means)
    covariance -= np.outer(tfs.slopes, targets.slopes)
    spread = np.outer(tfs.deviations, targets.deviations)
    found = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > SMALLEST)
    return np.clip(found, -1, 1).astype(np.float32)


def fisher_difference(first: Float32, second: Float32, *, num_first: int, num_second: int) -> Float32:
    """Return z of the difference of two correlations (first minus second), by Fisher's transformation."""
    limit = 1 - 1e-6
    gap = np.arctanh(np.clip(first, -limit, limit)) - np.arctanh(np.clip(second, -limit, limit))
    error = np.sqrt(1 / max(num_first - 4, 1) + 1 / max(num_second - 4, 1))  # 4: two genes' means, depth's slopes
    return np.asarray(gap / error, np.float32)
