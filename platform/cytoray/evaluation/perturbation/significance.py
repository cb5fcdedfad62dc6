"""Which genes a perturbation changes: t-scores against the other cells, rank tests, and false discovery rates."""

# C cells, G genes, P perturbations

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse, stats

from cytoray.evaluation.perturbation.effects import Effects

Float64 = npt.NDArray[np.float64]
LEVEL = 0.05  # of false discoveries
_TINY = 1e-12


def t_scores(effects: Effects) -> Float64:
    """Return the t-score (P, G) of each effect against the mean effect of all other cells, controls among them.

    The variance of the others is divided by the number of perturbed cells, as scanpy's ``t-test_overestim_var`` does,
    so that a large background does not make every gene significant.
    """
    counts = effects.num_cells[:, None].astype(np.float64)
    total = counts.sum() + effects.num_controls
    sums = (counts * effects.deltas).sum(axis=0)
    rest_mean = (sums - counts * effects.deltas) / (total - counts)
    pooled = (counts * effects.variances).sum(axis=0) + effects.num_controls * effects.control_variance
    rest_variance = (pooled - counts * effects.variances) / (total - counts)
    error = np.sqrt((effects.variances + rest_variance) / counts)
    found: Float64 = (effects.deltas - rest_mean) / np.maximum(error, _TINY)
    return np.where(error > _TINY, found, 0.0)


def adjusted_p_values(effects: Effects) -> Float64:
    """Return two-sided p-values (P, G) of the effects against controls, adjusted for false discoveries."""
    counts = effects.num_cells[:, None].astype(np.float64)
    error = np.sqrt(effects.variances / counts + effects.control_variance / max(effects.num_controls, 1))
    scores = np.where(error > _TINY, effects.deltas / np.maximum(error, _TINY), 0.0)
    freedom = np.maximum(counts + effects.num_controls - 2, 1)
    return np.stack([adjust(row) for row in 2 * stats.t.sf(np.abs(scores), freedom)])


def error_weights(scores_PG: Float64, mask_PG: npt.NDArray[np.bool_]) -> Float64:
    """Return weights (P, G) of the squared errors of genes, from t-scores: each row sums to 1, masked genes have 0.

    Absolute scores are scaled to 0-1 in each row and squared.
    """
    size = np.where(mask_PG, np.abs(scores_PG), np.nan)
    low, high = np.nanmin(size, axis=1, keepdims=True), np.nanmax(size, axis=1, keepdims=True)
    scaled = np.nan_to_num((size - low) / np.maximum(high - low, _TINY)) ** 2
    flat = (high - low <= _TINY)[:, 0]
    scaled[flat] = mask_PG[flat]
    found: Float64 = scaled / np.maximum(scaled.sum(axis=1, keepdims=True), _TINY)
    return found


def adjust(p_values: Float64) -> Float64:
    """Return p-values (G,) adjusted by Benjamini and Hochberg."""
    order = np.argsort(p_values)
    scaled = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    found = np.empty_like(scaled)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found


def rank_test(first: sparse.csr_matrix, second: sparse.csr_matrix) -> Float64:
    """Return two-sided p-values (G,) of Wilcoxon's rank-sum test (normal, with ties), of two sets of cells."""
    one, two = first.shape[0], second.shape[0]
    values = np.asarray(sparse.vstack([first, second]).todense(), np.float64)
    ranks = stats.rankdata(values, axis=0)
    total = one + two
    expected = one * (total + 1) / 2
    ties = np.array([_ties(column) for column in ranks.T])
    variance = one * two / 12 * ((total + 1) - ties / max(total * (total - 1), 1))
    scores = np.where(
        variance > _TINY, (ranks[:one].sum(axis=0) - expected) / np.sqrt(np.maximum(variance, _TINY)), 0.0
    )
    found: Float64 = 2 * stats.norm.sf(np.abs(scores))
    return found


def _ties(ranks: Float64) -> float:
    """Sum of t^3 - t over the ties of one gene."""
    counts = np.unique(ranks, return_counts=True)[1].astype(np.float64)
    return float((counts**3 - counts).sum())
