"""Predict the effect of a condition in a cell type from its effects in other types.

    setting, errors = choose_for_type(known)  # by leaving out each known type
    predict_type(known, control, setting)  # (G,) for a type with the mean expression ``control`` in its controls

Known types count more the more their control cells resemble the new type's. The effect on a gene also depends on how
much it is expressed: a ridge regression over genes, fitted on the known types, corrects for that.
"""

# T known cell types, G genes, F features

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
TEMPERATURES = (0.0, 0.3, 0.1, 0.05, 0.02)  # of similarities; 0: all types count the same
STRENGTHS = (0.5, 1.0)
FEWEST_FOR_CHOICE = 3  # known types
LEAST_GAIN = 0.01
RIDGE = 1e-3
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class KnownTypes:
    """Effects of a condition in T cell types."""

    names: tuple[str, ...]  # (T,)
    deltas: Float64  # (T, G)
    controls: Float64  # (T, G) mean of the control cells of each type
    reliability: Float64  # (T,)
    weights: Float64  # (T, G) of squared errors; each row sums to 1

    def without(self, row: int) -> KnownTypes:
        """Return all types but one."""
        kept = np.arange(len(self.names)) != row
        return KnownTypes(
            tuple(name for name, keep in zip(self.names, kept, strict=True) if keep),
            self.deltas[kept],
            self.controls[kept],
            self.reliability[kept],
            self.weights[kept],
        )


@dataclass(frozen=True)
class TypeSetting:
    """How known types are used; with strength 0 the prediction is their plain mean."""

    temperature: float = 0.0
    corrected: bool = False
    strength: float = 0.0

    def __str__(self) -> str:
        """Describe the setting for reports."""
        if not self.strength:
            return "mean of the other types"
        like = f"similar types (temperature {self.temperature:g})" if self.temperature else "reliable types"
        return f"{like}{', corrected for expression' if self.corrected else ''}, strength {self.strength:g}"


def predict_type(known: KnownTypes, control: Float64, setting: TypeSetting) -> Float64:
    """Return the effect (G,) in a cell type by the mean expression of its control cells."""
    mean: Float64 = known.deltas.mean(axis=0)
    if not setting.strength:
        return mean
    if setting.corrected and len(known.names) > 2:
        rows = [known.without(row) for row in range(len(known.names))]
        features = [_features(some, known.controls[row], setting) for row, some in enumerate(rows)]
        found = _regress(features, known, _features(known, control, setting))
    else:
        found = shares(known, control, setting) @ known.deltas
    return mean + setting.strength * (found - mean)


def shares(known: KnownTypes, control: Float64, setting: TypeSetting) -> Float64:
    """Return the weight of each known type (T,); the weights sum to 1."""
    found = known.reliability.copy()
    if setting.temperature:
        likeness = similarity(known, control)
        found *= np.exp((likeness - likeness.max()) / setting.temperature)
    return found / max(float(found.sum()), _TINY)


def similarity(known: KnownTypes, control: Float64) -> Float64:
    """Return the correlation (T,) of the control expression of each known type with that of another one."""
    centred = known.controls - known.controls.mean(axis=1, keepdims=True)
    other = control - control.mean()
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(other)
    found: Float64 = centred @ other / np.maximum(lengths, _TINY)
    return found


def choose_for_type(known: KnownTypes) -> tuple[TypeSetting, dict[str, float]]:
    """Choose a setting by the weighted error on known types left out; the plain mean is always a candidate."""
    candidates = [TypeSetting()]
    if len(known.names) >= FEWEST_FOR_CHOICE:
        candidates += [TypeSetting(*each) for each in product(TEMPERATURES, (False, True), STRENGTHS)]
    errors = {str(setting): _left_out_error(known, setting) for setting in candidates}
    best = min(candidates, key=lambda setting: errors[str(setting)])
    floor = errors[str(TypeSetting())]
    return (best if errors[str(best)] < (1 - LEAST_GAIN) * floor else TypeSetting()), errors


def _left_out_error(known: KnownTypes, setting: TypeSetting) -> float:
    losses = []
    for row in range(len(known.names)):
        if len(known.names) < 2:
            return 0.0
        predicted = predict_type(known.without(row), known.controls[row], setting)
        losses.append(float((known.weights[row] * (predicted - known.deltas[row]) ** 2).sum()))
    return float(np.average(losses, weights=known.reliability))


def _features(known: KnownTypes, control: Float64, setting: TypeSetting) -> Float64:
    """Features of each gene in a type (G, F): the effect in similar types, and expression here and there."""
    effect = shares(known, control, replace(setting, corrected=False)) @ known.deltas
    usual = known.controls.mean(axis=0)
    return np.stack(
        [
            effect,
            effect * control,
            effect * usual,
            control,
            control - usual,
            control**2,
            np.minimum(effect, 0) * control,
            np.abs(effect),
        ],
        axis=1,
    )


def _regress(features: list[Float64], known: KnownTypes, new: Float64) -> Float64:
    """Fit effects (T, G) by features of known types, each predicted from the others, and apply it to a new one."""
    inputs = np.concatenate(features)
    scale = np.maximum(inputs.std(axis=0), _TINY)
    inputs = inputs / scale
    weights = np.repeat(known.reliability, known.deltas.shape[1])[:, None]
    inner = (inputs * weights).T @ inputs + RIDGE * len(inputs) * np.eye(inputs.shape[1])
    found: Float64 = (new / scale) @ np.linalg.solve(inner, (inputs * weights).T @ known.deltas.ravel())
    return found
