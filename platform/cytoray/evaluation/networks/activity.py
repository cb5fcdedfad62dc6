"""Activity of transcription factors in each cell, by a univariate linear model over the genes (decoupler's ULM).

The activity is the t-value of the slope of the cell's expression on the factor's weights of all genes, 0 for genes that
are not its targets.
"""

# C cells, G genes, T transcription factors

from __future__ import annotations

import numpy as np
from scipy import sparse

from cytoray.evaluation.networks.cells import SMALLEST, Float32, Float64

_CELLS_AT_A_TIME = 4_096


def activities(expression: sparse.csr_matrix, weights: Float64) -> Float32:
    """Return the activity of each factor in each cell, (C, T), from expression (C, G) and weights (G, T)."""
    matrix = sparse.csr_matrix(expression)
    num_genes = matrix.shape[1]
    centred = weights - weights.mean(axis=0)
    lengths = np.sqrt(np.square(centred).sum(axis=0))
    found = np.zeros((matrix.shape[0], weights.shape[1]), np.float32)
    for start in range(0, matrix.shape[0], _CELLS_AT_A_TIME):
        rows = matrix[start : start + _CELLS_AT_A_TIME].astype(np.float64)
        means = np.asarray(rows.mean(axis=1)).ravel()
        squares = np.asarray(rows.multiply(rows).sum(axis=1)).ravel()
        spread = np.sqrt(np.maximum(squares - num_genes * means**2, 0))
        scale = np.outer(spread, lengths)
        inner = rows @ centred  # centring one side is enough
        r = np.clip(np.divide(inner, scale, out=np.zeros_like(inner), where=scale > SMALLEST), -1 + 1e-9, 1 - 1e-9)
        found[start : start + len(r)] = r * np.sqrt((num_genes - 2) / (1 - r**2))
    return found
