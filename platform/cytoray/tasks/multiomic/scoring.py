"""Scores of predicted proteins: correlations, also within cell types, errors, and positive against negative cells."""

# C cells, P proteins, D draws

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.intervals import draw_rows
from cytoray.tasks.multiomic.paired import Float64, Int64
from cytoray.tokens.labels import is_placeholder

FEWEST_CELLS = 30  # of a type, for correlations within it
LEAST_SHARE = 0.02  # of cells in the smaller component of a mixture
_TINY = 1e-12


def draw_weights(units: Sequence[object] | npt.NDArray[np.generic], *, num_draws: int, seed: int) -> Float64:
    """Return how often each draw of the bootstrap over units holds each cell, (D, C)."""
    num_cells = len(units)
    draws = draw_rows(units, num_draws=num_draws, seed=seed)
    return np.stack([np.bincount(rows, minlength=num_cells) for rows in draws]).astype(np.float64)


def weighted_correlations(truth_CP: Float64, predicted_CP: Float64, weights_DC: Float64 | None = None) -> Float64:
    """Return the Pearson correlation of each protein, (P,), or of each draw and protein, (D, P).

    Constant predictions have correlation 0, a constant truth has NaN.
    """
    first = truth_CP - truth_CP.mean(axis=0)  # before squares are summed: they keep their digits
    second = predicted_CP - predicted_CP.mean(axis=0)
    weights = np.ones((1, len(first))) if weights_DC is None else weights_DC
    total = weights.sum(axis=1)[:, None]
    means = weights @ first / total, weights @ second / total
    variances = [
        np.maximum(weights @ values**2 / total - mean**2, 0)
        for values, mean in zip((first, second), means, strict=True)
    ]
    shared = weights @ (first * second) / total - means[0] * means[1]
    found = shared / np.sqrt(np.maximum(variances[0] * variances[1], _TINY**2))
    found = np.where(variances[1] > _TINY, found, 0.0)
    found = np.where(variances[0] > _TINY, found, np.nan)
    return found[0] if weights_DC is None else found


def mean_correlation(truth_CP: Float64, predicted_CP: Float64) -> float:
    """Return the mean Pearson correlation over the proteins that vary; NaN if none does."""
    return _mean(weighted_correlations(truth_CP, predicted_CP))


def squared_errors(truth_CP: Float64, predicted_CP: Float64, weights_DC: Float64 | None = None) -> Float64:
    """Return the root mean squared error over all cells and proteins: one value (1,), or one per draw (D,)."""
    errors = ((truth_CP - predicted_CP) ** 2).mean(axis=1)
    weights = np.ones((1, len(errors))) if weights_DC is None else weights_DC
    found: Float64 = np.sqrt(weights @ errors / weights.sum(axis=1))
    return found


def ranks(values_CP: Float64) -> Float64:
    """Return mean ranks within each protein, for Spearman's correlation."""
    from scipy.stats import rankdata

    found: Float64 = rankdata(values_CP, axis=0)
    return found


def within_types(
    truth_CP: Float64, predicted_CP: Float64, types: Sequence[Int64], weights_DC: Float64 | None = None
) -> Float64:
    """Return the correlation within each type averaged over proteins, then over types: (1,) or (D,)."""
    per_type = []
    for rows in types:
        weights = None if weights_DC is None else weights_DC[:, rows]
        if weights is not None:
            weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, np.nan)
        found = np.atleast_2d(weighted_correlations(truth_CP[rows], predicted_CP[rows], weights))
        per_type.append([_mean(row) for row in found])
    return np.array([_mean(np.array(column)) for column in zip(*per_type, strict=True)])


def rows_by_type(labels: Sequence[str]) -> dict[str, Int64]:
    """Return the rows of each cell type with enough cells, without placeholders such as ``unassigned``."""
    names = np.asarray(labels, str)
    found = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    return {name: rows for name, rows in found.items() if len(rows) >= FEWEST_CELLS and not is_placeholder(name)}


@dataclass(frozen=True)
class Mixture:
    """Two normal components of a protein's values; cells above the threshold are positive."""

    threshold: float
    share: float  # of positive cells


def fit_mixture(values_C: Float64) -> Mixture | None:
    """Fit two normal components; None unless they are apart and both hold cells."""
    from sklearn.mixture import GaussianMixture

    points = values_C[:, None]
    if len(np.unique(values_C)) < 10:
        return None
    one = GaussianMixture(1).fit(points)
    two = GaussianMixture(2, n_init=2, random_state=0).fit(points)
    if two.bic(points) >= one.bic(points):
        return None
    low, high = np.argsort(two.means_.ravel())
    grid = np.linspace(two.means_[low, 0], two.means_[high, 0], 201)
    likely = two.predict_proba(grid[:, None])[:, high]
    threshold = float(grid[np.argmin(np.abs(likely - 0.5))])
    share = float((values_C > threshold).mean())
    spread = np.sqrt(two.covariances_.ravel())
    is_apart = two.means_[high, 0] - two.means_[low, 0] > 1.5 * spread.mean()
    return Mixture(threshold, share) if is_apart and LEAST_SHARE <= share <= 1 - LEAST_SHARE else None


def positive_auroc(truth_C: Float64, predicted_C: Float64, mixture: Mixture) -> float:
    """Return the area under the ROC curve of telling positive cells from the others by the predicted values."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth_C > mixture.threshold, predicted_C))


def noise_ceiling(counts_CP: Float64, *, seed: int = 0) -> Float64:
    """Return the correlation (P,) that the noise of counting leaves to a perfect prediction.

    Counts are split in halves (binomial); the correlation r of their log-ratios gives that of the whole with what a
    deeper measurement would show: sqrt(2 r / (1 + r)).
    """
    from cytoray.tasks.multiomic.paired import centred_log_ratio

    half = np.random.default_rng(seed).binomial(counts_CP.astype(np.int64), 0.5)
    agreement = weighted_correlations(centred_log_ratio(half), centred_log_ratio(counts_CP - half))
    agreement = np.clip(agreement, 0, 1)
    found: Float64 = np.sqrt(2 * agreement / (1 + agreement))
    return found


def _mean(values: Float64) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")
