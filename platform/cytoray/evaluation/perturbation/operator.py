"""Predict the effect of a perturbation from those of similar targets: kernel ridge regression around their mean.

    choice = choose(kernels, effects, weights)  # by leaving out each target once
    fitted = fit(choice.setting, kernels, effects)
    fitted.predict({"GO": rows})  # effects (Q, G), and the confidence (Q,) in each

The mean of the known effects is always a candidate: it is a strength of 0. Leaving a target out has a closed form.
"""

# P known perturbations, Q new ones, G genes

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.effects import Effects

Float64 = npt.NDArray[np.float64]
Kernels = Mapping[str, Float64]  # (P, P) by view
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
TRUSTS = (0.0, 0.1)  # confidence c is turned into a factor c / (c + trust)
RANKS = (None, 5)  # leading components of the effects that predictions are restricted to
LEAST_GAIN = 0.01  # of the error of the mean that must be gained to leave it
FEWEST_TO_CHOOSE = 6  # perturbations; with fewer the usual setting is taken
MOST_FOR_RANKS = 60  # perturbations; with more, components are not a candidate
MOST_VIEWS = 4
USUAL_RIDGE = 0.3
_TINY = 1e-12


@dataclass(frozen=True)
class Setting:
    """How similar targets are used: with no view or a strength of 0, the prediction is the mean."""

    views: tuple[str, ...] = ()
    ridge: float = USUAL_RIDGE
    strength: float = 0.0
    trust: float = 0.0
    rank: int | None = None

    def __str__(self) -> str:
        """Describe the setting for reports."""
        if not self.views or not self.strength:
            return "mean of the others"
        rest = f"ridge {self.ridge:g}, strength {self.strength:g}"
        rest += f", trust {self.trust:g}" if self.trust else ""
        return f"{' + '.join(self.views)} ({rest}{f', {self.rank} components' if self.rank else ''})"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted operator."""

    setting: Setting
    mean: Float64  # (G,) weighted mean of the known effects
    dual: Float64  # (P, G)
    inverse: Float64  # (P, P) of the kernel with its ridge
    basis: Float64 | None  # (G, R) components that predictions are restricted to

    def predict(self, rows: Kernels, num: int) -> tuple[Float64, Float64]:
        """Return effects (Q, G) and confidence (Q,) of Q = ``num`` targets, by their similarities (Q, P) by view."""
        row = joined(rows, self.setting.views, shape=(num, len(self.inverse)))
        confidence = np.maximum(np.einsum("qp,pr,qr->q", row, self.inverse, row), 0)
        deviations = row @ self.dual
        if self.basis is not None:
            deviations = deviations @ self.basis @ self.basis.T
        factor = self.setting.strength * trusted(confidence, self.setting.trust)
        return self.mean + factor[:, None] * deviations, confidence * self.setting.strength

    def influence(self, row_P: Float64) -> Float64:
        """Return the weight (P,) of each known effect in the prediction for one target."""
        found: Float64 = row_P @ self.inverse
        return found


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen setting, and its predictions of the known effects, each without the target's own."""

    setting: Setting
    held_out: Float64  # (P, G)
    confidence: Float64  # (P,)
    errors: dict[str, float]  # weighted error of the mean, of each view alone at its best, and of the choice
    why: str


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions of each known effect from the others: the mean of the others, what is added to it, confidence."""

    means: Float64  # (P, G)
    deviations: Float64  # (P, G)
    confidence: Float64  # (P,)


def choose(kernels: Kernels, effects: Effects, weights: Float64) -> Choice:
    """Choose views, ridge, strength, trust and components by the weighted error (P, G) of effects left out.

    Targets count by their number of cells. Views are added one by one as long as the error falls.
    """
    search = _Search(kernels, effects, weights)
    floor, errors = search.mean_error, {"mean": search.mean_error}
    views = [name for name, kernel in kernels.items() if np.any(kernel[~np.eye(len(kernel), dtype=bool)] != 0)]
    if not views or len(effects.names) < FEWEST_TO_CHOOSE:
        setting = Setting(tuple(views), USUAL_RIDGE, 0.5 if views and len(effects.names) > 2 else 0.0)
        held_out, confidence = search.predictions(setting)
        few = f"{len(effects.names)} perturbations are too few to choose" if views else "no view knows two targets"
        return Choice(setting, held_out, confidence, errors, f"{few}: {setting}")
    tried: dict[tuple[str, ...], tuple[Setting, float]] = {(name,): search.best((name,)) for name in views}
    tried[tuple(views)] = search.best(tuple(views))
    errors |= {" + ".join(names): found[1] for names, found in tried.items()}
    setting, error = min(tried.values(), key=lambda found: found[1])
    while len(setting.views) < min(MOST_VIEWS, len(views)):
        added = [search.best((*setting.views, name)) for name in views if name not in setting.views]
        found = min(added, key=lambda each: each[1])
        if found[1] >= error:
            break
        setting, error = found
    if error > (1 - LEAST_GAIN) * floor:
        setting, error = Setting(), floor
    errors["chosen"] = error
    held_out, confidence = search.predictions(setting)
    why = f"{setting}: weighted error {error:.3g} on targets left out, mean of the others {floor:.3g}"
    return Choice(setting, held_out, confidence, errors, why)


def fit(setting: Setting, kernels: Kernels, effects: Effects) -> Fitted:
    """Fit the operator to the known effects."""
    weights = effects.reliability
    mean = (weights[:, None] * effects.deltas).sum(axis=0) / weights.sum()
    kernel = joined(kernels, setting.views, shape=(len(weights), len(weights)))
    inverse: Float64 = np.linalg.inv(_with_ridge(kernel, setting.ridge, weights)).astype(np.float64)
    centred = effects.deltas - mean
    basis = None if setting.rank is None else components(centred, setting.rank)
    return Fitted(setting, mean, inverse @ centred, inverse, basis)


def leave_out(kernel: Float64, effects: Effects, ridge: float) -> LeftOut:
    """Predict each known effect from the others, in closed form."""
    weights = effects.reliability
    regularised = _with_ridge(kernel, ridge, weights)
    inverse = np.linalg.inv(regularised)
    own = np.diag(inverse)[:, None]
    means = left_out_means(effects)
    predicted = effects.deltas - inverse @ effects.deltas / own
    of_ones = 1 - inverse.sum(axis=1, keepdims=True) / own
    confidence = np.maximum(np.diag(regularised) - 1 / own[:, 0], 0)
    return LeftOut(means, predicted - of_ones * means, confidence)


def predict_left_out(setting: Setting, kernels: Kernels, effects: Effects) -> Float64:
    """Return predictions (P, G) of the known effects by a setting, each without its own."""
    return _Search(kernels, effects, np.ones_like(effects.deltas)).predictions(setting)[0]


def left_out_means(effects: Effects) -> Float64:
    """Return the weighted mean of the other effects (P, G); of a single one, no effect."""
    weights = effects.reliability[:, None]
    rest = weights.sum() - weights
    found: Float64 = ((weights * effects.deltas).sum(axis=0) - weights * effects.deltas) / np.maximum(rest, _TINY)
    return np.where(rest > _TINY, found, 0.0)


def joined(kernels: Kernels, views: tuple[str, ...], *, shape: tuple[int, int]) -> Float64:
    """Return the mean of the kernels of some views; zeros of ``shape`` for none."""
    if not views:
        return np.zeros(shape)
    found: Float64 = np.mean([kernels[name] for name in views], axis=0)
    return found


def trusted(confidence: Float64, trust: float) -> Float64:
    """Return the factor (Q,) of predictions of a confidence."""
    return confidence / (confidence + trust) if trust else np.ones_like(confidence)


def components(rows: Float64, num: int) -> Float64:
    """Return the leading right singular vectors (G, num) of rows (P, G)."""
    sizes, left = np.linalg.eigh(rows @ rows.T)
    top = [place for place in np.argsort(-sizes)[:num] if sizes[place] > _TINY]
    found: Float64 = rows.T @ left[:, top] / np.sqrt(sizes[top])
    return found


def choose_share(held_out: Float64, other: Float64, effects: Effects, weights: Float64) -> float:
    """Return the share of another model's predictions of effects left out that lowers the weighted error most.

    All are (P, G). 0 means that the other model is not used: add it as ``(1 - share) * held_out + share * other``.
    """
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    losses = [
        mean_by_cells((weights * (held_out + share * (other - held_out) - effects.deltas) ** 2).sum(axis=1), effects)
        for share in shares
    ]
    best = int(np.argmin(losses))
    return shares[best] if losses[best] < (1 - LEAST_GAIN) * losses[0] else 0.0


class _Search:
    """Errors of settings on effects left out."""

    def __init__(self, kernels: Kernels, effects: Effects, weights: Float64) -> None:
        self._kernels, self._effects, self._weights = kernels, effects, weights
        self._means = left_out_means(effects)
        self._missed = effects.deltas - self._means
        self.mean_error = mean_by_cells((weights * self._missed**2).sum(axis=1), effects)
        self._shape = (len(self._means), len(self._means))
        self._bases: dict[int, list[Float64]] = {}

    def best(self, views: tuple[str, ...]) -> tuple[Setting, float]:
        """The setting of these views with the lowest error."""
        kernel, found = joined(self._kernels, views, shape=self._shape), []
        for ridge in RIDGES:
            left = leave_out(kernel, self._effects, ridge)
            for rank in self._ranks:
                deviations = self._restricted(left.deviations, rank)
                crossed = (self._weights * self._missed * deviations).sum(axis=1)
                squared = (self._weights * deviations**2).sum(axis=1)
                for strength, trust in product(STRENGTHS, TRUSTS):
                    factor = strength * trusted(left.confidence, trust)
                    change = mean_by_cells(factor**2 * squared - 2 * factor * crossed, self._effects)
                    found.append((Setting(views, ridge, strength, trust, rank), self.mean_error + change))
        return min(found, key=lambda each: each[1])

    def predictions(self, setting: Setting) -> tuple[Float64, Float64]:
        """Predictions of the effects left out, and the confidence in each."""
        if not setting.views or not setting.strength:
            return self._means, np.zeros(len(self._means))
        left = leave_out(joined(self._kernels, setting.views, shape=self._shape), self._effects, setting.ridge)
        factor = setting.strength * trusted(left.confidence, setting.trust)
        deviations = self._restricted(left.deviations, setting.rank)
        return self._means + factor[:, None] * deviations, left.confidence * setting.strength

    @property
    def _ranks(self) -> tuple[int | None, ...]:
        return tuple(rank for rank in RANKS if rank is None or rank + 2 < len(self._means) <= MOST_FOR_RANKS)

    def _restricted(self, deviations: Float64, rank: int | None) -> Float64:
        """Deviations restricted to components of the effects that are not left out."""
        if rank is None:
            return deviations
        if rank not in self._bases:
            rows = np.arange(len(deviations))
            self._bases[rank] = [
                components((self._effects.deltas - self._means[row])[rows != row], rank) for row in rows
            ]
        return np.stack([row @ basis @ basis.T for row, basis in zip(deviations, self._bases[rank], strict=True)])


def _with_ridge(kernel: Float64, ridge: float, weights: Float64) -> Float64:
    return kernel + ridge * np.diag(1 / weights)


def mean_by_cells(values: Float64, effects: Effects) -> float:
    """Return the mean of values (P,) by the number of cells of each perturbation."""
    return float(np.average(values, weights=effects.num_cells))
