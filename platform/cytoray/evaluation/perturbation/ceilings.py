"""Limits set by the data: agreement of two halves of the cells, and predictions that another half would make.

A perturbation is measurable if the effects of its two halves correlate; of those, it is saturated if the mean of the
others comes close to what a half of its own cells predicts. All others are resistant.
"""

# P perturbations, G genes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.effects import Effects, PerturbedCells, measure_effects, split_halves
from cytoray.evaluation.perturbation.metrics import pearson_delta
from cytoray.evaluation.perturbation.significance import adjusted_p_values, error_weights, t_scores

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Stratum = Literal["saturated", "resistant"]
MEASURABLE, SATURATED = 0.4, 0.8
NUM_SPLITS = 5


@dataclass(frozen=True, eq=False)
class Half:
    """The effects of one half, with weights of genes and a prediction that come from the other half."""

    truth: Float64  # (P, G)
    weights: Float64  # (P, G) of squared errors, from the other half
    duplicate: Float64  # (P, G) the other half, drawn to the mean of the others where it is not significant


def split_effects(cells: PerturbedCells, *, seed: int) -> tuple[Effects, Effects]:
    """Return the effects of two halves of the cells; each perturbation must have two cells, as controls must."""
    first, second = (measure_effects(cells.take(rows)) for rows in split_halves(cells, seed=seed))
    return first, second


def agreement(cells: PerturbedCells, mask: Bools, *, seed: int) -> Float64:
    """Return the correlation (P,) of the effects of two halves, averaged over several splits."""
    found = []
    for number in range(NUM_SPLITS):
        first, second = split_effects(cells, seed=seed + number)
        found.append(pearson_delta(first.deltas, second.deltas, mask))
    means: Float64 = np.mean(found, axis=0)
    return means


def crossed_halves(cells: PerturbedCells, mask: Bools, *, seed: int) -> tuple[Half, Half]:
    """Return each half of the cells, with weights and a prediction from the other one."""
    first, second = split_effects(cells, seed=seed)
    return _against(first, second, mask), _against(second, first, mask)


def interpolated_duplicate(other: Effects) -> Float64:
    """Return the prediction (P, G) by another half: (1 - p) times its effect, p times the mean of the others."""
    p_values = adjusted_p_values(other)
    return (1 - p_values) * other.deltas + p_values * mean_of_others(other)


def mean_of_others(effects: Effects) -> Float64:
    """Return the weighted mean effect of all other perturbations (P, G); of a single one, no effect."""
    if len(effects.names) < 2:
        return np.zeros_like(effects.deltas)
    weights = effects.reliability[:, None]
    total = (weights * effects.deltas).sum(axis=0)
    found: Float64 = (total - weights * effects.deltas) / (weights.sum() - weights)
    return found


def stratum(agreement: float, mean_score: float, ceiling: float) -> Stratum | None:
    """Return the stratum of a perturbation by its halves' agreement and scores of the mean; None if not measurable."""
    if not agreement >= MEASURABLE:
        return None
    return "saturated" if mean_score >= SATURATED * ceiling else "resistant"


def dynamic_range(mean: float, ceiling: float, perfect: float) -> float:
    """Return the share of the way from the mean's score to a perfect one that the ceiling goes (DRF).

    A metric of which it is below 0.1 cannot tell methods apart on these data.
    """
    return (ceiling - mean) / (perfect - mean) if perfect != mean else float("nan")


def finite_mean(values: Sequence[float] | Float64) -> float:
    """Return the mean of the finite values; NaN without any."""
    array = np.asarray(values, np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if len(array) else float("nan")


def _against(truth: Effects, other: Effects, mask: Bools) -> Half:
    return Half(truth.deltas, error_weights(t_scores(other), mask), interpolated_duplicate(other))
