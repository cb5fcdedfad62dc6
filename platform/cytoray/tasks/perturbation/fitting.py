"""Fit what predicts the effects of perturbations, and predict new ones: single genes, combinations, conditions.

model = fit_targets(effects, parts, views, TargetGenes(symbols, means))
predicted = model.predict([("IRF9",), ("IFNGR1", "STAT2")])
predicted.deltas, predicted.confidence, predicted.reasons
"""

# P known perturbations, Q new ones, S single ones, G genes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.effects import Effects
from cytoray.evaluation.perturbation.operator import Choice, Fitted, Setting, choose, fit, joined, left_out_means
from cytoray.evaluation.perturbation.significance import error_weights, t_scores
from cytoray.evaluation.perturbation.views import View

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Parts = tuple[str, ...]
LEVEL = 0.9  # of intervals
NUM_NEIGHBOURS, NUM_SHARED = 3, 3
LEAST_EXPRESSION = 0.1  # mean in controls of a perturbed gene whose loss is measured
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Predicted:
    """Effects predicted for Q perturbations."""

    deltas: Float64  # (Q, G)
    confidence: Float64  # (Q,) 0: the mean of the known effects, near 1: like a known one
    half_width: Float64  # (Q, G) of the interval that held LEVEL of the measured effects that were left out
    reasons: tuple[dict[str, Any], ...]  # (Q,) the known perturbations that each was predicted from, and why


@dataclass(frozen=True, eq=False)
class Pairs:
    """What combinations do beyond the sum of their parts: an operator on the residuals of known combinations."""

    parts: tuple[Parts, ...]
    fitted: Fitted


@dataclass(frozen=True, eq=False)
class TargetModel:
    """Effects of P known perturbations, and an operator on the single ones among them."""

    symbols: Parts  # (G,)
    means: Float64  # (G,) of control cells
    effects: Effects  # (P, G)
    parts: tuple[Parts, ...]  # (P,)
    views: Mapping[str, View]
    singles: Int64  # (S,) rows of single perturbations
    fitted: Fitted
    half_width: Float64  # (G,)
    own_ratio: float | None  # expression of a perturbed gene as a share of that in controls
    pairs: Pairs | None
    estimates: Float64  # (S, G) known effects, drawn to their prediction by the others as they are noisy

    def kernels(self, targets: Sequence[str]) -> dict[str, Float64]:
        """Return similarities (Q, S) of targets and the known single ones, by view."""
        known = [self.parts[row][0] for row in self.singles]
        return {name: view.similarity(targets, known) for name, view in self.views.items()}

    def predict(self, wanted: Sequence[Parts]) -> Predicted:
        """Predict the effects of perturbations, each the parts of one; a known single one has its own estimate."""
        targets = sorted({part for parts in wanted for part in parts})
        rows = self.kernels(targets)
        predicted, confidence = self.fitted.predict(rows)
        place = {target: row for row, target in enumerate(targets)}
        known = {self.parts[row][0]: number for number, row in enumerate(self.singles)}
        for target, row in place.items():
            if target in known:
                predicted[row] = self.estimates[known[target]]
                confidence[row] = self.effects.reliability[self.singles[known[target]]]
            else:
                self._set_own(predicted[row], (target,))
        deltas = np.stack([predicted[[place[part] for part in parts]].sum(axis=0) for parts in wanted])
        trust = np.array([confidence[[place[part] for part in parts]].min() for parts in wanted])
        if self.pairs is not None:
            deltas = deltas + self._beyond_sum(wanted)
        widths = np.stack([np.sqrt(len(parts)) * self.half_width for parts in wanted])
        row_of = joined(rows, self.fitted.setting.views, size=len(self.singles))
        reasons = tuple(self._reason(parts, {part: row_of[place[part]] for part in parts}) for parts in wanted)
        return Predicted(deltas, np.clip(trust, 0, 1), widths, reasons)

    def _set_own(self, delta: Float64, parts: Parts) -> None:
        """Set the change of the perturbed genes themselves to what it is in known perturbations."""
        if self.own_ratio is None:
            return
        for column in _columns(self.symbols, parts):
            delta[column] = self.means[column] * (self.own_ratio - 1)

    def _beyond_sum(self, wanted: Sequence[Parts]) -> Float64:
        assert self.pairs is not None
        found = np.zeros((len(wanted), len(self.symbols)))
        rows = [row for row, parts in enumerate(wanted) if len(parts) > 1]
        if rows:
            kernel = pair_kernel(self.views, self.pairs.fitted.setting, [wanted[row] for row in rows], self.pairs.parts)
            found[rows] = self.pairs.fitted.predict({"pairs": kernel})[0]
        return found

    def _reason(self, parts: Parts, similarity: Mapping[str, Float64]) -> dict[str, Any]:
        known = [self.parts[row][0] for row in self.singles]
        described = []
        for part in parts:
            if part in known:
                described.append({"target": part, "known": True, "neighbours": []})
                continue
            row = similarity[part]
            weights = self.fitted.influence(row) if self.fitted.setting.strength else np.zeros(len(known))
            nearest = [place for place in np.argsort(-row, kind="stable")[:NUM_NEIGHBOURS] if row[place] > _TINY]
            neighbours = [
                {
                    "target": known[place],
                    "similarity": round(float(row[place]), 4),
                    "weight": round(float(weights[place]), 4),
                    "shared": self._shared(part, known[place]),
                }
                for place in nearest
            ]
            described.append({"target": part, "known": False, "neighbours": neighbours})
        return {"parts": described, "method": str(self.fitted.setting)}

    def _shared(self, first: str, second: str) -> list[str]:
        names = self.fitted.setting.views or tuple(self.views)
        found = [f"{name}: {each}" for name in names for each in self.views[name].shared(first, second, num=NUM_SHARED)]
        return found[:NUM_SHARED]


@dataclass(frozen=True, eq=False)
class FittedTargets:
    """A fitted model, and how its setting was chosen."""

    model: TargetModel
    choice: Choice
    warnings: tuple[str, ...] = ()


def fit_targets(
    effects: Effects, parts: Sequence[Parts], views: Mapping[str, View], *, symbols: Parts, means: Float64
) -> FittedTargets:
    """Fit the operator to the single perturbations, and to what combinations do beyond the sum of their parts.

    If there are only combinations, each is taken as a perturbation of its first part.
    """
    singles = np.array([row for row, each in enumerate(parts) if len(each) == 1], np.int64)
    if not len(singles):
        singles = np.arange(len(parts))
    some = effects.take(singles)
    targets = [parts[row][0] for row in singles]
    mask = np.ones(some.deltas.shape, bool)
    for row, target in enumerate(targets):
        mask[row, _columns(symbols, (target,))] = False
    kernels = {name: view.similarity(targets, targets) for name, view in views.items()}
    # That a target is lost itself says nothing about others: its own gene is taken as in the others.
    usual = replace(some, deltas=np.where(mask, some.deltas, left_out_means(some)))
    choice = choose(kernels, usual, error_weights(t_scores(some), mask))
    weights = some.reliability[:, None]
    model = TargetModel(
        symbols=symbols,
        means=means,
        effects=replace(effects, equal_cells=some.equal_cells),
        parts=tuple(parts),
        views=views,
        singles=singles,
        fitted=fit(choice.setting, kernels, usual),
        half_width=_half_width(some.deltas - choice.held_out, mask),
        own_ratio=_own_ratio(some, symbols, targets),
        pairs=None,
        estimates=np.where(mask, weights * some.deltas + (1 - weights) * choice.held_out, some.deltas),
    )
    return FittedTargets(replace(model, pairs=_fit_pairs(model)), choice)


def pair_kernel(
    views: Mapping[str, View], setting: Setting, first: Sequence[Parts], second: Sequence[Parts]
) -> Float64:
    """Return the similarity of two lists of combinations: the mean over their parts, a part being its own likeness."""
    targets = sorted({part for parts in (*first, *second) for part in parts})
    names = setting.views or tuple(views)
    between = joined({name: views[name].similarity(targets, targets) for name in names}, names, size=len(targets))
    np.fill_diagonal(between, 1.0)
    place = {target: row for row, target in enumerate(targets)}

    def spread(combinations: Sequence[Parts]) -> Float64:
        """Return the shares of the parts of combinations."""
        found = np.zeros((len(combinations), len(targets)))
        for row, parts in enumerate(combinations):
            found[row, [place[part] for part in parts]] = 1 / len(parts)
        return found

    one, two = spread(first), spread(second)
    lengths = [np.sqrt(np.maximum(np.einsum("qt,tu,qu->q", each, between, each), _TINY)) for each in (one, two)]
    found: Float64 = (one @ between @ two.T) / lengths[0][:, None] / lengths[1]
    return found


def _fit_pairs(model: TargetModel) -> Pairs | None:
    """Fit an operator to the residuals of combinations; None unless it predicts those left out better than the sum."""
    rows = np.array([row for row, parts in enumerate(model.parts) if len(parts) > 1], np.int64)
    if len(rows) < 3 or len(rows) == len(model.parts):
        return None
    known = [model.parts[row] for row in rows]
    some = model.effects.take(rows)
    residuals = replace(some, deltas=some.deltas - model.predict(known).deltas)
    weights = error_weights(t_scores(some), np.ones(some.deltas.shape, bool))
    setting = replace(model.fitted.setting, strength=0.0)
    kernels = {"pairs": pair_kernel(model.views, setting, known, known)}
    choice = choose(kernels, residuals, weights)
    with_operator = (weights * (residuals.deltas - choice.held_out) ** 2).sum()
    if with_operator >= (weights * residuals.deltas**2).sum():
        return None
    return Pairs(tuple(known), fit(replace(choice.setting, views=("pairs",)), kernels, residuals))


def _own_ratio(effects: Effects, symbols: Parts, targets: Sequence[str]) -> float | None:
    """Median share of its expression in controls that a perturbed gene keeps; None if none was measured."""
    places = [(row, column) for row, target in enumerate(targets) for column in _columns(symbols, (target,))]
    ratios = [
        1 + effects.deltas[place] / effects.controls[place]
        for place in places
        if effects.controls[place] > LEAST_EXPRESSION
    ]
    return float(np.median(ratios)) if ratios else None


def _half_width(residuals: Float64, mask: npt.NDArray[np.bool_]) -> Float64:
    """Half-widths (G,) of intervals that hold LEVEL of the effects left out; genes differ by their own spread."""
    squares = np.where(mask, residuals**2, np.nan)
    spread = np.sqrt(np.nan_to_num(np.nanmean(squares, axis=0)) if len(residuals) > 1 else squares[0])
    spread = np.maximum(np.nan_to_num(spread), _TINY)
    factor = np.nanquantile(np.where(mask, np.abs(residuals), np.nan) / spread, LEVEL)
    found: Float64 = spread * factor
    return found


def _columns(symbols: Parts, parts: Sequence[str]) -> list[int]:
    wanted = {part.upper() for part in parts}
    return [column for column, symbol in enumerate(symbols) if symbol.upper() in wanted]
