"""Blend the effects of another model with the operator's, by a share that is chosen on targets it has not seen.

    choice = choose_blend(held_out, other, effects, weights)
    choice.blend.apply(predicted, mean, other)  # (Q, G)

Only what the other model predicts beyond its own mean counts, added to the mean of the known effects: the rest belongs
to the cells that it was trained on. NaN is an effect that the other model does not predict.
"""

# P known perturbations, Q new ones, G genes

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.effects import Effects
from cytoray.evaluation.perturbation.operator import choose_share, left_out_means, mean_by_cells

Float64 = npt.NDArray[np.float64]
FEWEST_JUDGED = 4  # known targets that the other model has not seen
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Blend:
    """The share of another model in predictions."""

    share: float
    gain: float  # of the error of the mean, the share that the other model alone removes; 0 at least
    centre: Float64  # (G,) its mean prediction of the targets that it was judged by

    def apply(self, predicted: Float64, mean: Float64, other: Float64) -> Float64:
        """Return the blend of the operator's effects (Q, G), around ``mean`` (G,), with those of the other model."""
        return _mixed(predicted, mean + other - self.centre, self.share)


@dataclass(frozen=True, eq=False)
class BlendChoice:
    """A blend, None if the other model is not used, and predictions of the known effects, each without its own."""

    blend: Blend | None
    held_out: Float64  # (P, G)
    why: str


def choose_blend(held_out: Float64, other: Float64, effects: Effects, weights: Float64) -> BlendChoice:
    """Choose the share of another model by the weighted error (P, G) of effects left out; a share of 0 is a candidate.

    ``held_out`` are the operator's predictions of the known effects, each without its own; rows of ``other`` that are
    NaN, such as targets that the other model was trained on, are not judged.
    """
    rows = np.flatnonzero(~np.isnan(other).all(axis=1))
    if len(rows) < FEWEST_JUDGED:
        few = f"{len(rows)} known targets are new to it, {FEWEST_JUDGED} are needed to judge it"
        return BlendChoice(None, held_out, f"not used: {few}")
    some, scale = effects.take(rows), weights[rows]
    means = left_out_means(effects)[rows]
    alone = _mixed(means, means + other[rows] - _left_out_centres(other[rows]), 1.0)
    share = choose_share(held_out[rows], alone, some, scale)
    mixed = held_out.copy()
    mixed[rows] = _mixed(held_out[rows], alone, share)
    error = {
        name: mean_by_cells((scale * (values - some.deltas) ** 2).sum(axis=1), some)
        for name, values in (("mean", means), ("operator", held_out[rows]), ("alone", alone), ("blend", mixed[rows]))
    }
    why = (
        f"{f'share {share:.0%}' if share else 'not used'}: weighted error {error['blend']:.3g} on {len(rows)} targets "
        f"left out, operator {error['operator']:.3g}, it alone {error['alone']:.3g}, mean {error['mean']:.3g}"
    )
    if not share:
        return BlendChoice(None, held_out, why)
    gain = float(np.clip(1 - error["alone"] / max(error["mean"], _TINY), 0, 1))
    return BlendChoice(Blend(share, gain, other[rows].mean(axis=0)), mixed, why)


def _left_out_centres(other: Float64) -> Float64:
    """Mean of all rows but one, for each row (P, G)."""
    found: Float64 = (other.sum(axis=0) - other) / (len(other) - 1)
    return found


def _mixed(predicted: Float64, other: Float64, share: float) -> Float64:
    """Blend two predictions; the first one alone where the other is NaN."""
    return predicted + share * np.where(np.isnan(other), 0.0, other - predicted)
