"""Two different doubts about a label: several labels fit (ambiguous), or none that was learned does (unseen type).

Prediction sets: class-conditional split conformal (Vovk 2012, "Mondrian"), score 1 - p(label). Unseen types: conformal
p-values of the distance to the training cells of the predicted label. Both hold if new cells are exchangeable with the
cells that they are calibrated on, which batch effects break.
"""

# C cells, H held-out cells to calibrate on, K labels

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
FEWEST = 10  # held-out cells of a label for limits of its own; labels with fewer share one


@dataclass(frozen=True, eq=False)
class PredictionSets:
    """Limits of the score 1 - p(label), by label: a cell's set has every label below its limit."""

    limits: Float64  # (K,)
    level: float  # share of cells whose set shall hold the true label

    def contain(self, probabilities_CK: Float64) -> Bool:
        """Return which labels are in each cell's set, (C, K); the likeliest label always is."""
        inside: Bool = 1 - probabilities_CK <= self.limits
        inside[np.arange(len(inside)), probabilities_CK.argmax(axis=1)] = True
        return inside


def fit_prediction_sets(probabilities_HK: Float64, truth_H: Int64, *, level: float = 0.9) -> PredictionSets:
    """Calibrate prediction sets on held-out cells, label by label; of labels with few cells on all cells together."""
    scores = 1 - probabilities_HK[np.arange(len(truth_H)), truth_H]
    common = _quantile(scores, level)
    num_labels = probabilities_HK.shape[1]
    limits = np.full(num_labels, common)
    for label in range(num_labels):
        own = scores[truth_H == label]
        if len(own) >= FEWEST:
            limits[label] = _quantile(own, level)
    return PredictionSets(limits, level)


@dataclass(frozen=True, eq=False)
class Strangeness:
    """Distances of held-out cells to the training cells of their label, ascending, by label."""

    distances: tuple[Float64, ...]  # K arrays

    def p_values(self, distances_C: Float64, label_C: Int64) -> Float64:
        """Return how probable so great a distance is for cells of the label, (C,); small for an unseen type."""
        found = np.ones(len(distances_C))
        for label in np.unique(label_C):
            rows, known = label_C == label, self.distances[label]
            as_far = len(known) - np.searchsorted(known, distances_C[rows], side="left")
            found[rows] = (1 + as_far) / (1 + len(known))
        return found


def fit_strangeness(distances_H: Float64, label_H: Int64, *, num_labels: int) -> Strangeness:
    """Calibrate on held-out cells and their true labels; a label with few of them uses those of all labels."""
    everything = np.sort(distances_H)
    own = [np.sort(distances_H[label_H == label]) for label in range(num_labels)]
    return Strangeness(tuple(each if len(each) >= FEWEST else everything for each in own))


def area_under_roc(scores_C: Float64, positive_C: Bool) -> float:
    """Return the share of pairs in which the positive cell has the higher score, ties counting half."""
    from scipy.stats import rankdata  # takes a second to import, and a service only judges single cells

    num_positive = int(positive_C.sum())
    num_negative = len(positive_C) - num_positive
    assert num_positive > 0 < num_negative, "both kinds of cells are needed"
    ranks = rankdata(scores_C)[positive_C].sum()
    return float((ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _quantile(scores: Float64, level: float) -> float:
    """The score that ``level`` of exchangeable new cells do not exceed; 1 if there are too few to say."""
    place = int(np.ceil((len(scores) + 1) * level))
    return 1.0 if place > len(scores) else float(np.sort(scores)[place - 1])
