"""Fit a model of the effects of perturbations, and predict new ones: single genes, combinations, conditions.

fitted = fit_targets(effects, parts, Members(views), symbols=symbols, means=means)
predicted = fitted.model.predict([("IRF9",), ("IFNGR1", "STAT2")])
predicted.deltas, predicted.confidence, predicted.reasons
"""

# P known perturbations, Q new ones, S single ones, G genes

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.blending import Blend, choose_blend
from cytoray.evaluation.perturbation.effects import Effects
from cytoray.evaluation.perturbation.operator import (
    Choice,
    Fitted,
    Setting,
    choose,
    fit,
    joined,
    left_out_means,
    predict_left_out,
)
from cytoray.evaluation.perturbation.significance import error_weights, t_scores
from cytoray.evaluation.perturbation.views import View
from cytoray.tasks.perturbation.members import GeneratorUse, Members, effects_of

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Parts = tuple[str, ...]
LEVEL = 0.9  # of intervals
NUM_NEIGHBOURS, NUM_SHARED = 3, 3
LEAST_EXPRESSION = 0.1  # mean in controls of a perturbed gene whose loss is measured
NOTHING: Mapping[str, Float64] = {}
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
    """An operator on the residuals of known combinations: their effects beyond the sum of their parts."""

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
    blend: Blend | None = None  # with a generator
    generator: GeneratorUse | None = None

    @property
    def method(self) -> str:
        """How a target without cells is predicted."""
        return f"{self.fitted.setting}{self._with_generator}"

    def needs_generator(self, wanted: Sequence[Parts]) -> list[str]:
        """Return the targets that the generator must predict before these perturbations can be."""
        known = {self.parts[row][0] for row in self.singles}
        return [] if self.blend is None else sorted({part for parts in wanted for part in parts} - known)

    @property
    def _with_generator(self) -> str:
        return "" if self.blend is None else f", with {self.blend.share:.0%} of a generator's"

    def kernels(self, targets: Sequence[str]) -> dict[str, Float64]:
        """Return similarities (Q, S) of targets and the known single ones, by view."""
        known = [self.parts[row][0] for row in self.singles]
        return {name: view.similarity(targets, known) for name, view in self.views.items()}

    def predict(self, wanted: Sequence[Parts], generated: Mapping[str, Float64] = NOTHING) -> Predicted:
        """Predict the effects of perturbations, each the parts of one; a known single one has its own estimate.

        ``generated`` are effects (G,) of the generator by target; targets without are predicted by the operator alone.
        """
        targets = sorted({part for parts in wanted for part in parts})
        rows = self.kernels(targets)
        predicted, confidence = self.fitted.predict(rows, len(targets))
        if self.blend is not None:
            other = effects_of(generated, targets, num_genes=len(self.symbols))
            predicted = self.blend.apply(predicted, self.fitted.mean, other)
            is_missing = np.isnan(other).all(axis=1)
            confidence = np.maximum(confidence, np.where(is_missing, 0.0, self.blend.share * self.blend.gain))
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
        row_of = joined(rows, self.fitted.setting.views, shape=(len(targets), len(self.singles)))
        reasons = []
        for parts in wanted:
            described = [self._reason(part, row_of[place[part]]) for part in parts]
            is_blended = any(part in generated and part not in known for part in parts)
            method = self.method if is_blended else str(self.fitted.setting)
            reasons.append({"parts": described, "method": method})
        return Predicted(deltas, np.clip(trust, 0, 1), widths, tuple(reasons))

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
            found[rows] = self.pairs.fitted.predict({"pairs": kernel}, len(rows))[0]
        return found

    def _reason(self, part: str, row: Float64) -> dict[str, Any]:
        """The known targets that the prediction of a part rests on, by its similarities (S,)."""
        known = [self.parts[place][0] for place in self.singles]
        if part in known:
            return {"target": part, "known": True, "neighbours": []}
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
        return {"target": part, "known": False, "neighbours": neighbours}

    def _shared(self, first: str, second: str) -> list[str]:
        names = self.fitted.setting.views or tuple(self.views)
        found = [f"{name}: {each}" for name in names for each in self.views[name].shared(first, second, num=NUM_SHARED)]
        return found[:NUM_SHARED]


@dataclass(frozen=True, eq=False)
class FittedTargets:
    """A fitted model, and how its setting was chosen."""

    model: TargetModel
    choice: Choice
    why: str


def fit_targets(
    effects: Effects, parts: Sequence[Parts], members: Members, *, symbols: Parts, means: Float64
) -> FittedTargets:
    """Fit the operator to the single perturbations, and another one to the residuals of combinations.

    If there are only combinations, each is taken as a perturbation of its first part. A generator is blended with the
    operator if that lowers the error on known targets that it was not trained on.
    """
    singles = np.array([row for row, each in enumerate(parts) if len(each) == 1], np.int64)
    if not len(singles):
        singles = np.arange(len(parts))
    known = _Singles.of(effects.take(singles), [parts[row][0] for row in singles], members.views, symbols)
    scale, generated = error_weights(t_scores(known.effects), known.mask), members.generated
    choice = choose(known.kernels, known.usual, scale)
    held_out, blend, why = choice.held_out, None, choice.why
    if generated is not None:
        other = effects_of(generated.effects, known.targets, num_genes=len(symbols))
        found = choose_blend(held_out, other, known.usual, scale)
        held_out, blend, why = found.held_out, found.blend, f"{why}; generator {found.why}"
    model = TargetModel(
        symbols=symbols,
        means=means,
        effects=replace(effects, equal_cells=known.effects.equal_cells),
        parts=tuple(parts),
        views=members.views,
        singles=singles,
        pairs=None,
        blend=blend,
        generator=generated.use if generated is not None and blend is not None else None,
        **known.fit(choice.setting, held_out, symbols),
    )
    pairs = _fit_pairs(model, NOTHING if generated is None else generated.effects)
    return FittedTargets(replace(model, pairs=pairs), choice, why)


def refit_targets(model: TargetModel, effects: Effects) -> TargetModel:
    """Return a model with other effects of the same perturbations, such as those at a dose; what was chosen stays.

    Combinations are then the sum of their parts, and a generator, which knows no dose, is not used.
    """
    targets = [model.parts[row][0] for row in model.singles]
    some = replace(effects.take(model.singles), equal_cells=model.effects.equal_cells)
    known = _Singles.of(some, targets, model.views, model.symbols)
    setting = model.fitted.setting
    held_out = predict_left_out(setting, known.kernels, known.usual)
    effects = replace(effects, equal_cells=model.effects.equal_cells)
    return replace(model, effects=effects, pairs=None, blend=None, **known.fit(setting, held_out, model.symbols))


@dataclass(frozen=True, eq=False)
class _Singles:
    """The known single perturbations."""

    effects: Effects
    targets: Sequence[str]
    kernels: Mapping[str, Float64]  # (S, S) by view
    mask: npt.NDArray[np.bool_]  # (S, G) genes that are not perturbed
    usual: Effects  # with the mean of the others for the target itself, whose loss says nothing about other targets

    @staticmethod
    def of(effects: Effects, targets: Sequence[str], views: Mapping[str, View], symbols: Parts) -> _Singles:
        """Compare single perturbations with each other, and mask their own genes."""
        mask = np.ones(effects.deltas.shape, bool)
        for row, target in enumerate(targets):
            mask[row, _columns(symbols, (target,))] = False
        kernels = {name: view.similarity(targets, targets) for name, view in views.items()}
        usual = replace(effects, deltas=np.where(mask, effects.deltas, left_out_means(effects)))
        return _Singles(effects, targets, kernels, mask, usual)

    def fit(self, setting: Setting, held_out: Float64, symbols: Parts) -> dict[str, Any]:
        """Return the parts of a model that depend on the effects; ``held_out`` are predictions without their own."""
        weights, deltas = self.effects.reliability[:, None], self.effects.deltas
        return {
            "fitted": fit(setting, self.kernels, self.usual),
            "half_width": _half_width(deltas - held_out, self.mask),
            "own_ratio": _own_ratio(self.effects, symbols, self.targets),
            "estimates": np.where(self.mask, weights * deltas + (1 - weights) * held_out, deltas),
        }


def pair_kernel(
    views: Mapping[str, View], setting: Setting, first: Sequence[Parts], second: Sequence[Parts]
) -> Float64:
    """Return the similarity of two lists of combinations: the mean over their parts, a part being its own likeness."""
    targets = sorted({part for parts in (*first, *second) for part in parts})
    names = setting.views or tuple(views)
    between = joined(
        {name: views[name].similarity(targets, targets) for name in names}, names, shape=(len(targets), len(targets))
    )
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


def _fit_pairs(model: TargetModel, generated: Mapping[str, Float64]) -> Pairs | None:
    """Fit an operator to the residuals of combinations; None unless it predicts those left out better than the sum."""
    rows = np.array([row for row, parts in enumerate(model.parts) if len(parts) > 1], np.int64)
    if len(rows) < 3 or len(rows) == len(model.parts):
        return None
    known = [model.parts[row] for row in rows]
    some = model.effects.take(rows)
    residuals = replace(some, deltas=some.deltas - model.predict(known, generated).deltas)
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
