"""Scores of predicted effects, one per perturbation; masked genes, such as the perturbed one, do not count."""

# P perturbations, G genes

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
COLLAPSED = 0.25  # ratio of diversity below which predictions are called collapsed
NUM_TOP = 20
_TINY = 1e-12


def pearson_delta(predicted: Float64, truth: Float64, mask: Bools) -> Float64:
    """Return Pearson's correlation of each predicted effect (P, G) with the true one; 0 for a constant prediction."""
    return np.array([_correlation(a[m], b[m]) for a, b, m in zip(predicted, truth, mask, strict=True)])


def spearman_changed(predicted: Float64, truth: Float64, changed: Bools) -> Float64:
    """Return Spearman's correlation over the genes that truly change (P, G); NaN with fewer than 3 of them."""
    found = []
    for a, b, m in zip(predicted, truth, changed, strict=True):
        found.append(_correlation(stats.rankdata(a[m]), stats.rankdata(b[m])) if m.sum() > 2 else np.nan)
    return np.array(found)


def weighted_error(predicted: Float64, truth: Float64, weights: Float64) -> Float64:
    """Return the weighted mean squared error (P,); rows of ``weights`` (P, G) sum to 1."""
    found: Float64 = (weights * (predicted - truth) ** 2).sum(axis=1)
    return found


def weighted_r2(predicted: Float64, truth: Float64, reference: Float64, weights: Float64) -> Float64:
    """Return 1 less the weighted error as a share of that of ``reference`` (P, G): below 0 is worse than it.

    With the mean of the training perturbations as the reference this is R2 of the effect beyond what all share.
    """
    floor = weighted_error(reference, truth, weights)
    return 1 - weighted_error(predicted, truth, weights) / np.maximum(floor, _TINY)


def mean_absolute_error(predicted: Float64, truth: Float64, mask: Bools) -> Float64:
    """Return the mean absolute error of each effect (P,)."""
    found: Float64 = (np.abs(predicted - truth) * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    return found


def discrimination(
    predicted: Float64, truths: Float64, mask: Bools, *, rows: npt.NDArray[np.int64], by: Literal["l1", "cosine"]
) -> Float64:
    """Return 1 - rank / Q of the true effect among all Q true effects, by distance from each prediction (P,).

    ``rows`` are the places of the P truths in ``truths`` (Q, G); rank 0 is the nearest. Ties are broken by order.
    """
    found = []
    for each, own, use in zip(predicted, rows, mask, strict=True):
        if by == "l1":
            distances = np.abs(truths[:, use] - each[use]).sum(axis=1)
        else:
            lengths = np.linalg.norm(truths[:, use], axis=1) * np.linalg.norm(each[use])
            distances = 1 - truths[:, use] @ each[use] / np.maximum(lengths, _TINY)
        rank = int(np.flatnonzero(np.argsort(distances, kind="stable") == own)[0])
        found.append(1 - rank / len(truths))
    return np.array(found)


def top_overlap(predicted: Float64, truth: Float64, mask: Bools, *, num: int = NUM_TOP) -> Float64:
    """Return the share of the ``num`` genes that truly change most that are among the predicted ones (P,)."""
    found = []
    for a, b, m in zip(predicted, truth, mask, strict=True):
        genes = np.flatnonzero(m)
        most = min(num, len(genes))
        first, second = (set(genes[np.argsort(-np.abs(each[genes]), kind="stable")[:most]]) for each in (a, b))
        found.append(len(first & second) / max(most, 1))
    return np.array(found)


def direction_match(predicted: Float64, truth: Float64, changed: Bools) -> Float64:
    """Return the share of truly changed genes whose sign is predicted (P,); NaN if no gene changes."""
    found = []
    for a, b, m in zip(predicted, truth, changed, strict=True):
        found.append(float((np.sign(a[m]) == np.sign(b[m])).mean()) if m.any() else np.nan)
    return np.array(found)


def changed_overlap(predicted_p: Float64, true_p: Float64, predicted_size: Float64, *, level: float) -> float:
    """Return the share of significant genes (G,) that are predicted to be significant; NaN if none is.

    If more genes are predicted than are true, those of the largest predicted change count, as many as are true.
    """
    true = np.flatnonzero(true_p < level)
    found = np.flatnonzero(predicted_p < level)
    if not len(true):
        return float("nan")
    if len(found) > len(true):
        found = found[np.argsort(-np.abs(predicted_size[found]), kind="stable")[: len(true)]]
    return len(set(true) & set(found)) / len(true)


def effect_sizes(deltas: Float64, mask: Bools) -> Float64:
    """Return the length of each effect (P,)."""
    found: Float64 = np.linalg.norm(np.where(mask, deltas, 0.0), axis=1)
    return found


def diversity_ratio(predicted: Float64, truth: Float64) -> float:
    """Return the mean distance between predictions, as a share of that between true effects; NaN for fewer than 2.

    Below COLLAPSED, all predictions are nearly the same.
    """
    if len(predicted) < 2:
        return float("nan")
    return _mean_distance(predicted) / max(_mean_distance(truth), _TINY)


def correlation(first: Float64, second: Float64) -> float:
    """Return Pearson's correlation; NaN for fewer than 3 values, 0 if one of them is constant."""
    return _correlation(first, second) if len(first) > 2 else float("nan")


def rank_correlation(first: Float64, second: Float64) -> float:
    """Return Spearman's correlation; NaN for fewer than 3 values, 0 if one of them is constant."""
    return correlation(stats.rankdata(first), stats.rankdata(second))


def _mean_distance(rows: Float64) -> float:
    squares = (rows**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    return float(distances[np.triu_indices(len(rows), 1)].mean())


def _correlation(first: Float64, second: Float64) -> float:
    if len(first) < 2:
        return float("nan")
    one, two = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(two))
    return float(one @ two / lengths) if lengths > _TINY else 0.0
