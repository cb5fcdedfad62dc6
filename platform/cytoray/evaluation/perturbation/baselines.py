"""Simple predictions of effects: no change, the mean of the known ones, and a linear map of gene embeddings."""

# P known perturbations, Q new ones, G genes, K components

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.effects import Effects
from cytoray.evaluation.perturbation.operator import components

Float64 = npt.NDArray[np.float64]
NUM_COMPONENTS, RIDGE = 10, 0.1


def predict_mean(effects: Effects, num: int) -> Float64:
    """Return the weighted mean of the known effects ``num`` times, (Q, G)."""
    weights = effects.reliability
    mean = (weights[:, None] * effects.deltas).sum(axis=0) / weights.sum()
    return np.tile(mean, (num, 1))


def predict_linear(effects: Effects, genes: Sequence[str], new: Sequence[str]) -> Float64:
    """Predict by the linear model of Ahlmann-Eltze, Huber and Anders (2025), (Q, G).

    Y = G W P' + b, where G (G, K) are the leading components of the known effects and of no change, P the rows of G of
    the targets, W is found by ridge regression on both sides, and b is the mean. Targets that are not among the genes
    (``new``, and known ones) have no row: they are predicted as the mean.
    """
    place = {gene.upper(): row for row, gene in enumerate(genes)}
    known = [row for row, name in enumerate(effects.names) if name.upper() in place]
    outcome = np.vstack([effects.deltas, np.zeros(effects.deltas.shape[1])]).T  # (G, P + 1)
    centre = outcome.mean(axis=1, keepdims=True)
    predicted = np.tile(centre[:, 0], (len(new), 1))
    rows = [row for row, name in enumerate(new) if name.upper() in place]
    if len(known) < 2 or not rows:
        return predicted
    embedding = components((outcome - centre).T, min(NUM_COMPONENTS, len(effects.names)))
    of_known = embedding[[place[effects.names[row].upper()] for row in known]]
    of_new = embedding[[place[new[row].upper()] for row in rows]]
    left = np.linalg.solve(_ridge(embedding), embedding.T @ (outcome - centre)[:, known])
    weights = left @ of_known @ np.linalg.inv(_ridge(of_known))
    predicted[rows] += (embedding @ weights @ of_new.T).T
    return predicted


def _ridge(values: Float64) -> Float64:
    return values.T @ values + RIDGE * np.eye(values.shape[1])
