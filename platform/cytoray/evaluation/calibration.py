"""How far probabilities can be believed: calibration error, likelihood, Brier score, and the temperature that mends it.

Temperature scaling: Guo et al. 2017, On calibration of modern neural networks.
"""

# C cells, K labels

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
NUM_BINS = 15
SMALLEST = 1e-12  # probability that a logarithm sees
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of equal numbers of cells by confidence: their mean confidence, their accuracy, their numbers of cells."""

    confidence: Float64
    accuracy: Float64
    num_cells: Int64

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, weighted by cells."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.average(gaps, weights=self.num_cells))


def measure_reliability(probabilities_CK: Float64, truth_C: Int64, *, num_bins: int = NUM_BINS) -> Reliability:
    """Sort cells by the probability of their predicted label into bins of equal mass; fewer bins than cells."""
    assert len(probabilities_CK) == len(truth_C) > 0, "one true label per cell, and at least one cell"
    confidence = probabilities_CK.max(axis=1)
    right = probabilities_CK.argmax(axis=1) == truth_C
    parts = np.array_split(np.argsort(confidence, kind="stable"), min(num_bins, len(truth_C)))
    return Reliability(
        np.array([confidence[rows].mean() for rows in parts]),
        np.array([right[rows].mean() for rows in parts]),
        np.array([len(rows) for rows in parts], np.int64),
    )


def negative_log_likelihood(probabilities_CK: Float64, truth_C: Int64) -> float:
    """Return the mean negative log-probability of the true label, in nats."""
    chosen = probabilities_CK[np.arange(len(truth_C)), truth_C]
    return float(-np.log(np.maximum(chosen, SMALLEST)).mean())


def brier_score(probabilities_CK: Float64, truth_C: Int64) -> float:
    """Return the mean over cells of the squared distance to the true label's unit vector, between 0 and 2."""
    target_CK = np.zeros_like(probabilities_CK)
    target_CK[np.arange(len(truth_C)), truth_C] = 1
    return float(((probabilities_CK - target_CK) ** 2).sum(axis=1).mean())


def fit_temperature(log_probabilities_CK: Float64, truth_C: Int64) -> float:
    """Return the temperature, between 0.05 and 20, under which held-out cells are most likely; 1 without cells."""
    if not len(truth_C):
        return 1.0

    def loss(log_temperature: float) -> float:
        """Return the loss at a temperature."""
        return negative_log_likelihood(softmax(log_probabilities_CK / np.exp(log_temperature)), truth_C)

    found = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def softmax(logits_CK: Float64) -> Float64:
    """Return probabilities (C, K) that sum to 1 over labels."""
    powers = np.exp(logits_CK - logits_CK.max(axis=1, keepdims=True))
    total: Float64 = powers / powers.sum(axis=1, keepdims=True)
    return total
