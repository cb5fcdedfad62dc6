"""Effects at any dose or time, interpolated between those that were measured.

    points = measure_points(cells, values)  # effects of each perturbation at each of its doses
    effects = points.at(np.array([0.5]), names=cells.names)  # (P, G)

Interpolation is linear, one covariate after the other, in the values or, if they span a factor of ten, about their
logarithms. If all control cells have the same value, such as a dose of 0, the effect there is 0. Beyond the measured
values the nearest one counts.
"""

# C cells, K covariates, M measured points, P perturbations, G genes

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.effects import CONTROL, Effects, PerturbedCells, measure_effects

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
WIDE = 10.0  # ratio of the largest value to the smallest above 0 from which they are spaced by their logarithms


@dataclass(frozen=True, eq=False)
class Points:
    """Effects at M points, each of one of P perturbations."""

    effects: Effects  # (M, G)
    owners: Int64  # (M,) of P
    values: Float64  # (M, K)
    controls: Float64  # (K,) the value of all control cells; NaN if they have several, or none

    def at(self, point: Float64, *, names: tuple[str, ...]) -> Effects:
        """Return the effects (P, G) of all perturbations at values (K,) of the covariates."""
        weights = np.stack([self._weights(np.flatnonzero(self.owners == row), point) for row in range(len(names))])
        total = weights.sum(axis=1, keepdims=True)
        share = np.where(total > 0, weights / np.maximum(total, 1e-12), self._even(len(names)))
        return replace(
            self.effects,
            names=names,
            deltas=weights @ self.effects.deltas,
            controls=share @ self.effects.controls,
            variances=share @ self.effects.variances,
            num_cells=np.maximum(np.rint(share @ self.effects.num_cells), 1).astype(np.int64),
        )

    def take(self, kept: Int64) -> Points:
        """Return the points of some perturbations, which are numbered in the order of ``kept``."""
        place = {int(owner): number for number, owner in enumerate(kept)}
        rows = np.flatnonzero(np.isin(self.owners, kept))
        owners = np.array([place[int(self.owners[row])] for row in rows], np.int64)
        return replace(self, effects=self.effects.take(rows), owners=owners, values=self.values[rows])

    @property
    def ranges(self) -> Float64:
        """Smallest and largest value of each covariate (K, 2) at which effects are known."""
        known = np.vstack([self.values, np.where(np.isnan(self.controls), self.values.min(axis=0), self.controls)])
        return np.stack([known.min(axis=0), known.max(axis=0)], axis=1)

    def _weights(self, rows: Int64, point: Float64) -> Float64:
        """Weight of each point (M,) in the effect of the perturbation that has these rows."""
        scaled = [
            spaced(self.values[:, k], np.append(self.values[rows, k], [point[k], self.controls[k]]))
            for k in range(len(point))
        ]
        table = np.stack(scaled, axis=1)
        found = np.zeros(len(self.owners))
        found[rows] = interpolation_weights(table[:-2], table[-2], table[-1])
        return found

    def _even(self, num: int) -> Float64:
        owned = self.owners == np.arange(num)[:, None]
        found: Float64 = owned / np.maximum(owned.sum(axis=1, keepdims=True), 1)
        return found


def measure_points(cells: PerturbedCells, values: Float64) -> Points:
    """Return the effects at each combination of values (C, K) that cells of a perturbation have.

    Every perturbation must have a cell, and its cells must have all values; NaN is allowed in control cells.
    """
    codes, owners, points = point_codes(cells, values)
    names = tuple(cells.names[owner] for owner in owners)
    effects = measure_effects(replace(cells, codes=codes, names=names))
    return Points(effects, owners, points, control_values(values[codes == CONTROL]))


def point_codes(cells: PerturbedCells, values: Float64) -> tuple[Int64, Int64, Float64]:
    """Return the point (C,) of each cell, and of each of M points the perturbation (M,) and the values (M, K)."""
    perturbed = cells.codes != CONTROL
    distinct, point = np.unique(np.column_stack([cells.codes, values])[perturbed], axis=0, return_inverse=True)
    codes = np.full(len(cells.codes), CONTROL, np.int64)
    codes[perturbed] = point.ravel()
    return codes, distinct[:, 0].astype(np.int64), distinct[:, 1:]


def control_values(values: Float64) -> Float64:
    """Return the value (K,) that all control cells (C, K) have; NaN for a covariate of which they have several."""
    found = np.full(values.shape[1], np.nan)
    for k, column in enumerate(values.T):
        distinct = np.unique(column[~np.isnan(column)])
        if len(distinct) == 1:
            found[k] = distinct[0]
    return found


def interpolation_weights(points: Float64, point: Float64, controls: Float64) -> Float64:
    """Return the weight of each of M distinct points (M, K) at ``point`` (K,); the rest to 1 is no effect.

    The last covariate is interpolated between its two nearest values, each of them by the other covariates.
    """
    if not len(point):
        return np.full(len(points), 1 / len(points))
    levels = np.unique(np.append(points[:, -1], controls[-1:][~np.isnan(controls[-1:])]))
    value = np.clip(point[-1], levels[0], levels[-1])
    low, high = levels[levels <= value].max(), levels[levels >= value].min()
    upper = 0.0 if high == low else (value - low) / (high - low)
    found = np.zeros(len(points))
    for level, share in ((low, 1 - upper), (high, upper)):
        rows = np.flatnonzero(points[:, -1] == level)
        if share and len(rows):  # without rows it is the value of the controls
            found[rows] += share * interpolation_weights(points[rows, :-1], point[:-1], controls[:-1])
    return found


def spaced(measured: Float64, values: Float64) -> Float64:
    """Return values on the scale on which they are interpolated, chosen by the measured ones (M,)."""
    positive = measured[measured > 0]
    if not len(positive) or measured.min() < 0 or positive.max() < WIDE * positive.min():
        return values
    found: Float64 = np.log1p(np.maximum(values, 0) / positive.min())
    return found
