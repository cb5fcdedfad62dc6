"""Predictors of proteins: ridge regression, neighbours, a radial kernel and small networks; arrays once fitted.

member = fit_member(Recipe("kernel", ("ranks",)), inputs, targets, option={"components": 30, "sharpness": 1.0})
member.predict(other_inputs)  # (C, P)
"""

# C cells, F features, P proteins, M landmarks, R radial features, A penalties

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cytoray.evaluation.adaptation import nearest_neighbours
from cytoray.tasks.multiomic.paired import Float32, Float64
from cytoray.tasks.multiomic.views import Inputs

Kind = Literal["ridge", "neighbours", "kernel", "network"]
Option = Mapping[str, float]
NUM_LANDMARKS, NUM_RADIAL = 800, 300
PENALTIES = np.geomspace(1e-4, 1e4, 25)
NUM_NETWORKS = 2  # that are averaged
LAYERS = (128, 128, 128)
PANEL_WEIGHT = 0.3  # of a standardised gene beside components whose standard deviation is about 1
CHUNK = 2048


@dataclass(frozen=True)
class Recipe:
    """A kind of predictor, the views it sees side by side, and the options to choose from."""

    kind: Kind
    views: tuple[str, ...]
    options: tuple[Option, ...] = ({},)


@dataclass(frozen=True, eq=False)
class Member:
    """A fitted predictor."""

    kind: Kind
    views: tuple[str, ...]
    option: Option
    arrays: Mapping[str, Float32]

    def predict(self, inputs: Inputs) -> Float64:
        """Predict proteins (C, P) of cells from their inputs."""
        features = side_by_side(inputs, self.views, self.option)
        parts = [
            _PREDICT[self.kind](self, features[start : start + CHUNK])
            for start in range(0, max(len(features), 1), CHUNK)
        ]
        return np.concatenate(parts).astype(np.float64)


def side_by_side(inputs: Inputs, views: tuple[str, ...], option: Option) -> Float32:
    """Return the features of several views, (C, F); of components the first ``option["components"]``."""
    parts = []
    for view in views:
        values = inputs[view]
        if view == "panel":
            parts.append(np.float32(PANEL_WEIGHT) * values)
        else:
            parts.append(values[:, : int(option.get("components", values.shape[1]))])
    return np.concatenate(parts, axis=1)


def fit_member(recipe: Recipe, inputs: Inputs, targets_CP: Float64, *, option: Option, seed: int = 0) -> Member:
    """Fit one predictor with one option on training cells."""
    features = side_by_side(inputs, recipe.views, option)
    arrays = _FIT[recipe.kind](features, targets_CP, option, seed)
    return Member(recipe.kind, recipe.views, option, arrays)


def _fit_ridge(features: Float32, targets: Float64, option: Option, seed: int) -> dict[str, Float32]:
    return _ridge(features.astype(np.float64), targets)


def _ridge(features: Float64, targets: Float64) -> dict[str, Float32]:
    """Weights and intercept with, for each protein, the penalty of the least generalised cross-validation error."""
    mean_F, mean_P = features.mean(axis=0), targets.mean(axis=0)
    centred, wanted = features - mean_F, targets - mean_P
    squares, axes = np.linalg.eigh(centred.T @ centred)
    squares = np.maximum(squares, 0)
    kept = squares > 1e-10 * max(float(squares[-1]), 1e-300)
    squares, axes = squares[kept], axes[:, kept]
    projected_FP = axes.T @ (centred.T @ wanted)
    power_FP = projected_FP**2 / squares[:, None]  # of each target along each axis
    scale = max(float(squares.mean()), 1e-300) if len(squares) else 1.0
    penalties = PENALTIES * scale
    shrink_AF = squares / (squares + penalties[:, None])
    residual_AP = (wanted**2).sum(axis=0) - (2 * shrink_AF - shrink_AF**2) @ power_FP
    freedom_A = np.maximum(1 - (shrink_AF.sum(axis=1) + 1) / len(features), 1e-3)
    best_P = (np.maximum(residual_AP, 0) / freedom_A[:, None] ** 2).argmin(axis=0)
    weights = axes @ (projected_FP / (squares[:, None] + penalties[best_P]))
    return {
        "weights": weights.astype(np.float32),
        "intercept": (mean_P - mean_F @ weights).astype(np.float32),
    }


def _predict_ridge(member: Member, features: Float32) -> Float32:
    found: Float32 = features @ member.arrays["weights"] + member.arrays["intercept"]
    return found


def _fit_neighbours(features: Float32, targets: Float64, option: Option, seed: int) -> dict[str, Float32]:
    return {"points": features, "targets": targets.astype(np.float32)}


def _predict_neighbours(member: Member, features: Float32) -> Float32:
    """Mean of the nearest training cells' proteins, the nearer ones weighing more."""
    points, targets = member.arrays["points"], member.arrays["targets"]
    places, distances = nearest_neighbours(features, points, num=int(member.option["neighbours"]))
    reach = np.maximum(distances[:, -1:], 1e-12)
    weights = np.exp(-((distances / reach) ** 2))
    weights /= weights.sum(axis=1, keepdims=True)
    found: Float32 = np.einsum("cn,cnp->cp", weights, targets[places]).astype(np.float32)
    return found


def _fit_kernel(features: Float32, targets: Float64, option: Option, seed: int) -> dict[str, Float32]:
    """Ridge regression over radial functions of the distances to landmarks (Nystroem)."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(features))[:NUM_LANDMARKS])
    landmarks = features[chosen]
    spread = float(features.var(axis=0).sum())
    sharpness = np.float32(option["sharpness"] / spread if spread > 0 else 1.0)
    sizes, vectors = np.linalg.eigh(_radial(landmarks, landmarks, sharpness).astype(np.float64))
    kept = slice(-min(NUM_RADIAL, len(sizes)), None)
    mixing = (vectors[:, kept] / np.sqrt(np.maximum(sizes[kept], 1e-6))).astype(np.float32)
    radial = _radial(features, landmarks, sharpness) @ mixing
    return {
        "landmarks": landmarks,
        "sharpness": np.array([sharpness], np.float32),
        "mixing": mixing,
        **_ridge(radial.astype(np.float64), targets),
    }


def _predict_kernel(member: Member, features: Float32) -> Float32:
    radial = _radial(features, member.arrays["landmarks"], member.arrays["sharpness"][0]) @ member.arrays["mixing"]
    return _predict_ridge(member, radial)


def _radial(first: Float32, second: Float32, sharpness: np.float32) -> Float32:
    """Gaussian function of the distances of all pairs."""
    apart = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    found: Float32 = np.exp(-sharpness * np.maximum(apart, 0))
    return found


def _fit_network(features: Float32, targets: Float64, option: Option, seed: int) -> dict[str, Float32]:
    """Networks of three hidden layers for all proteins at once, stopped early on a tenth of the training cells."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    mean, deviation = targets.mean(axis=0), np.maximum(targets.std(axis=0), 1e-12)
    wanted = ((targets - mean) / deviation).astype(np.float32)
    arrays: dict[str, Float32] = {"mean": mean.astype(np.float32), "deviation": deviation.astype(np.float32)}
    for number in range(NUM_NETWORKS):
        network = MLPRegressor(
            hidden_layer_sizes=LAYERS,
            alpha=1.0,
            batch_size=min(256, max(1, int(0.8 * len(features)))),
            learning_rate_init=2e-3,
            early_stopping=len(features) >= 100,
            n_iter_no_change=6,
            max_iter=60,
            random_state=seed + number,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # as many rounds as it may take; the gate judges
            network.fit(features, wanted if wanted.shape[1] > 1 else wanted[:, 0])
        for layer, (weights, offsets) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
            arrays[f"weights.{number}.{layer}"] = weights.astype(np.float32)
            arrays[f"intercept.{number}.{layer}"] = offsets.astype(np.float32)
    return arrays


def _predict_network(member: Member, features: Float32) -> Float32:
    arrays = member.arrays
    total: Float32 = np.zeros((len(features), len(arrays["mean"])), np.float32)
    # As many networks and layers as were fitted, whatever is fitted today.
    num_networks = sum(re.fullmatch(r"weights\.\d+\.0", name) is not None for name in arrays)
    last = sum(name.startswith("weights.0.") for name in arrays) - 1
    for number in range(num_networks):
        values = features
        for layer in range(last + 1):
            values = values @ arrays[f"weights.{number}.{layer}"] + arrays[f"intercept.{number}.{layer}"]
            if layer < last:
                np.maximum(values, 0, out=values)
        total = (total + values).astype(np.float32)
    found: Float32 = (total / num_networks * arrays["deviation"] + arrays["mean"]).astype(np.float32)
    return found


_FIT: dict[Kind, Callable[[Float32, Float64, Option, int], dict[str, Float32]]] = {
    "ridge": _fit_ridge,
    "neighbours": _fit_neighbours,
    "kernel": _fit_kernel,
    "network": _fit_network,
}
_PREDICT: dict[Kind, Callable[[Member, Float32], Float32]] = {
    "ridge": _predict_ridge,
    "neighbours": _predict_neighbours,
    "kernel": _predict_kernel,
    "network": _predict_network,
}
