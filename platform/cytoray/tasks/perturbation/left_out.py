"""Predict perturbations that were left out: whole targets, or a condition in whole cell types."""

# U units that are scored, P perturbations, G genes, K covariates

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.errors import CorpusError
from cytoray.evaluation.perturbation.baselines import predict_linear, predict_mean
from cytoray.evaluation.perturbation.ceilings import Half, agreement, crossed_halves
from cytoray.evaluation.perturbation.cell_types import (
    KnownTypes,
    TypeSetting,
    choose_for_type,
    predict_type,
    similarity,
)
from cytoray.evaluation.perturbation.covariates import Points, measure_points
from cytoray.evaluation.perturbation.effects import CONTROL, Effects, measure_effects
from cytoray.evaluation.perturbation.significance import adjusted_p_values, error_weights, t_scores
from cytoray.tasks.perturbation.covariates import point_text
from cytoray.tasks.perturbation.fitting import FittedTargets, TargetModel, fit_targets, refit_targets
from cytoray.tasks.perturbation.judging import Truth
from cytoray.tasks.perturbation.knowledge import control_means
from cytoray.tasks.perturbation.members import Members
from cytoray.tasks.perturbation.screen import Screen
from cytoray.tasks.pieces import Pieces
from cytoray.tokens.labels import is_placeholder

Float64 = npt.NDArray[np.float64]
FEWEST_TARGETS, MOST_FOLDS = 3, 30
FEWEST_OF_TYPE, FEWEST_TYPES = 10, 3  # cells with and without a condition, types with it


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Predictions of the units of one fold, made without them."""

    rows: npt.NDArray[np.int64]  # (u,)
    product: Float64  # (u, G)
    mean: Float64  # (u, G)
    others: Mapping[str, Float64]  # further methods, (u, G)
    confidence: Float64  # (u,)
    chosen: str
    why: str
    reasons: list[str]  # (u,) in a sentence


@dataclass(frozen=True, eq=False)
class Units:
    """The scored units, the predictions of all folds, and the rows of the cells of each unit and of its controls."""

    truth: Truth
    folds: list[LeftOut]
    perturbed: list[npt.NDArray[np.int64]]
    controls: list[npt.NDArray[np.int64]]
    sentence: str


def leave_targets_out(
    screen: Screen, members: Members, *, pieces: Pieces, advance: progress.Advance, seed: int
) -> Units:
    """Leave out each target with all perturbations that contain it, in at most MOST_FOLDS folds."""
    targets = screen.targets
    if len(targets) < FEWEST_TARGETS:
        raise CorpusError(
            f"{screen.uri}: {len(targets)} perturbed target ({', '.join(targets)}); leave-target-out needs "
            f"{FEWEST_TARGETS}.",
            remedy="If there are several cell types, use --protocol leave-cell-type-out --cell-type-key COLUMN.",
            targets=list(targets),
        )
    known = _Known.of(screen, members)
    order = np.random.default_rng(seed).permutation(len(targets))
    num_folds = min(len(targets), MOST_FOLDS)
    folds = [frozenset(targets[place] for place in order[number::num_folds]) for number in range(num_folds)]
    found = []
    for number, held in enumerate(folds):
        work = functools.partial(_fold, known, held)
        answer, reused = pieces.compute(f"targets {number}", work, kinds=(LeftOut,))
        found.append(answer)
        advance(1, f"{', '.join(sorted(held))}: {answer.chosen}", already=reused)
    units = screen.by_point()
    mask, effects = units.mask(), measure_effects(units.cells)
    truth = Truth(
        names=units.names,
        deltas=effects.deltas,
        mask=mask,
        p_values=adjusted_p_values(effects),
        num_cells=effects.num_cells.astype(np.float64),
        agreement=agreement(units.cells, mask, seed=seed),
        halves=crossed_halves(units.cells, mask, seed=seed),
        groups=tuple("" if known.points is None else point_text(screen.covariates, row) for row in known.values),
    )
    controls = np.flatnonzero(units.cells.codes == CONTROL)
    perturbed = [np.flatnonzero(units.cells.codes == row) for row in range(len(units.names))]
    sentence = f"each of {len(targets)} targets left out" + (
        f", in {num_folds} folds" if num_folds < len(targets) else ""
    )
    assert set(range(len(truth.names))) == {int(row) for fold in found for row in fold.rows}, "all are predicted"
    return Units(truth, found, perturbed, [controls] * len(perturbed), sentence)


@dataclass(frozen=True, eq=False)
class _Known:
    """The perturbations of a screen, and the units that are scored: one each, or one for each dose or time."""

    screen: Screen
    members: Members
    effects: Effects  # (P, G)
    points: Points | None
    owners: npt.NDArray[np.int64]  # (U,) perturbation of each unit
    values: Float64  # (U, K) of the covariates

    @staticmethod
    def of(screen: Screen, members: Members) -> _Known:
        """Measure the effects of a screen."""
        effects = measure_effects(screen.cells)
        if screen.values is None:
            owners = np.arange(len(screen.names))
            return _Known(screen, members, effects, None, owners, np.empty((len(owners), 0)))
        points = measure_points(screen.cells, screen.values)
        return _Known(screen, members, effects, points, points.owners, points.values)


def _fold(known: _Known, held: frozenset[str]) -> LeftOut:
    """Fit on the perturbations without any of the targets held out, and predict those that have one."""
    screen, members = known.screen, known.members
    is_held = np.array([bool(held & set(parts)) for parts in screen.parts])
    train, test = np.flatnonzero(~is_held), np.flatnonzero(is_held[known.owners])
    effects, parts = known.effects.take(train), [screen.parts[row] for row in train]
    fitted = fit_targets(effects, parts, members, symbols=screen.symbols, means=control_means(screen))
    found = []
    points, place = np.unique(known.values[test], axis=0, return_inverse=True)
    for number, point in enumerate(points):
        rows = test[place.ravel() == number]
        wanted = [screen.parts[known.owners[row]] for row in rows]
        if known.points is None:
            found.append(_predicted(fitted, fitted.model, rows, wanted, members))
        else:
            there = known.points.take(train).at(point, names=effects.names)
            found.append(_predicted(fitted, refit_targets(fitted.model, there), rows, wanted, members))
    return _joined(found)


def _predicted(
    fitted: FittedTargets,
    model: TargetModel,
    rows: npt.NDArray[np.int64],
    wanted: Sequence[tuple[str, ...]],
    members: Members,
) -> LeftOut:
    """Predict the units ``rows`` by the product and by simple methods, from the same effects."""
    generated = {} if members.generated is None else dict(members.generated.effects)
    predicted, known = model.predict(wanted, generated), model.effects
    others = {"linear": predict_linear(known, model.symbols, ["+".join(parts) for parts in wanted])}
    targets = {part for parts in (*model.parts, *wanted) for part in parts}
    if generated.keys() >= targets:  # else it would not be scored on the same perturbations
        others["generator"] = _generated_alone(known, model.parts, wanted, generated)
    is_generated = any(part in generated for parts in wanted for part in parts)
    return LeftOut(
        rows,
        predicted.deltas,
        predict_mean(known, len(rows)),
        others,
        predicted.confidence,
        model.method if is_generated else str(fitted.choice.setting),
        fitted.why,
        [reason_text(reason) for reason in predicted.reasons],
    )


def _joined(found: Sequence[LeftOut]) -> LeftOut:
    """Join the units of one fold."""
    return LeftOut(
        np.concatenate([each.rows for each in found]),
        np.concatenate([each.product for each in found]),
        np.concatenate([each.mean for each in found]),
        {name: np.concatenate([each.others[name] for each in found]) for name in found[0].others},
        np.concatenate([each.confidence for each in found]),
        found[0].chosen,
        found[0].why,
        [reason for each in found for reason in each.reasons],
    )


def _generated_alone(
    known: Effects,
    parts: Sequence[tuple[str, ...]],
    wanted: Sequence[tuple[str, ...]],
    generated: Mapping[str, Float64],
) -> Float64:
    """The generator's effects beyond its mean of known targets, added to the mean of the known effects."""
    mean = predict_mean(known, 1)[0]
    centre = np.mean([generated[part] for part in sorted({part for each in parts for part in each})], axis=0)
    return np.stack([mean + np.nan_to_num(sum(generated[part] - centre for part in each)) for each in wanted])


def leave_types_out(screen: Screen, *, pieces: Pieces, advance: progress.Advance, seed: int) -> Units:
    """Leave out each cell type, and predict the effect of each condition in it from the other types."""
    assert screen.cell_types is not None
    types = np.array(screen.cell_types)
    parts = {str(name): np.flatnonzero(types == name) for name in np.unique(types) if not is_placeholder(str(name))}
    pairs = [
        (condition, name, rows)
        for condition in range(len(screen.names))
        for name, rows in parts.items()
        if min((screen.cells.codes[rows] == code).sum() for code in (condition, CONTROL)) >= FEWEST_OF_TYPE
    ]
    counts = np.bincount([condition for condition, _, _ in pairs], minlength=len(screen.names))
    pairs = [pair for pair in pairs if counts[pair[0]] >= FEWEST_TYPES]
    if not pairs:
        raise CorpusError(
            f"{screen.uri}: no condition has {FEWEST_TYPES} cell types with {FEWEST_OF_TYPE} cells each, perturbed and "
            "control.",
            remedy="Name another column with --cell-type-key, or use --protocol leave-target-out.",
        )
    used = [rows[np.isin(screen.cells.codes[rows], (condition, CONTROL))] for condition, _, rows in pairs]
    mask = screen.mask()[[condition for condition, _, _ in pairs]]
    found, units = (
        [],
        [
            _unit(screen, rows, condition, mask[[place]], seed)
            for place, ((condition, _, _), rows) in enumerate(zip(pairs, used, strict=True))
        ],
    )
    for place, (condition, name, _) in enumerate(pairs):
        others = [other for other, pair in enumerate(pairs) if pair[0] == condition and other != place]
        work = functools.partial(_type_fold, [pair[1] for pair in pairs], units, place, others)
        answer, reused = pieces.compute(f"type {name}, {screen.names[condition]}", work, kinds=(LeftOut,))
        found.append(answer)
        advance(1, f"{name}, {screen.names[condition]}: {answer.chosen}", already=reused)
    is_one = len(set(counts[counts > 0])) == 1 and (counts > 0).sum() == 1
    names = [name if is_one else f"{name}, {screen.names[condition]}" for condition, name, _ in pairs]
    truth = Truth(
        names=tuple(names),
        deltas=np.concatenate([unit.effects.deltas for unit in units]),
        mask=mask,
        p_values=np.concatenate([adjusted_p_values(unit.effects) for unit in units]),
        num_cells=np.array([unit.effects.num_cells[0] for unit in units], np.float64),
        agreement=np.array([unit.agreement for unit in units]),
        halves=_crossed_types(units, [pair[0] for pair in pairs]),
        groups=tuple(screen.names[condition] for condition, _, _ in pairs),
    )
    codes = screen.cells.codes
    return Units(
        truth,
        found,
        [rows[codes[rows] != CONTROL] for rows in used],
        [rows[codes[rows] == CONTROL] for rows in used],
        f"each of {len(parts)} cell types left out" if is_one else "each cell type left out, for every condition",
    )


@dataclass(frozen=True, eq=False)
class _TypeUnit:
    effects: Effects  # of one condition in one type
    weights: Float64  # (1, G)
    agreement: float
    halves: tuple[Half, Half]


def _unit(
    screen: Screen, rows: npt.NDArray[np.int64], condition: int, mask: npt.NDArray[np.bool_], seed: int
) -> _TypeUnit:
    some = screen.cells.take(rows)
    cells = replace(some, codes=np.where(some.codes == CONTROL, CONTROL, 0), names=(screen.names[condition],))
    effects = measure_effects(cells)
    return _TypeUnit(
        effects,
        error_weights(t_scores(effects), mask),
        float(agreement(cells, mask, seed=seed)[0]),
        crossed_halves(cells, mask, seed=seed),
    )


def _type_fold(names: Sequence[str], units: Sequence[_TypeUnit], place: int, others: Sequence[int]) -> LeftOut:
    known = KnownTypes(
        tuple(names[other] for other in others),
        np.concatenate([units[other].effects.deltas for other in others]),
        np.concatenate([units[other].effects.controls for other in others]),
        np.array([units[other].effects.reliability[0] for other in others]),
        np.concatenate([units[other].weights for other in others]),
    )
    control = units[place].effects.controls[0]
    setting, errors = choose_for_type(known)
    likeness = similarity(known, control)
    nearest = np.argsort(-likeness, kind="stable")[:3]
    listed = ", ".join(f"{known.names[row]} ({likeness[row]:.2f})" for row in nearest)
    plain = errors[str(TypeSetting())]
    return LeftOut(
        np.array([place]),
        predict_type(known, control, setting)[None],
        predict_type(known, control, TypeSetting())[None],
        {"most similar type": known.deltas[nearest[:1]]},
        np.array([max(float(likeness[nearest[0]]), 0.0)]),
        str(setting),
        f"{setting}: weighted error {errors[str(setting)]:.3g} on types left out, their plain mean {plain:.3g}",
        [f"most similar control cells: {listed}"],
    )


def _crossed_types(units: Sequence[_TypeUnit], conditions: Sequence[int]) -> tuple[Half, Half]:
    """Halves of all units; where another half is not significant, it is drawn to the mean of the other types."""
    halves = []
    deltas = np.concatenate([unit.effects.deltas for unit in units])
    for side in (0, 1):
        weights = np.concatenate([unit.halves[side].weights for unit in units])
        truth = np.concatenate([unit.halves[side].truth for unit in units])
        other = np.concatenate([unit.halves[1 - side].truth for unit in units])
        p_values = np.concatenate([adjusted_p_values(unit.effects) for unit in units])
        mean = np.empty_like(deltas)
        for row, condition in enumerate(conditions):
            rest = [at for at, each in enumerate(conditions) if each == condition and at != row]
            mean[row] = deltas[rest].mean(axis=0)
        halves.append(Half(truth, weights, (1 - p_values) * other + p_values * mean))
    return halves[0], halves[1]


def reason_text(reason: Mapping[str, object]) -> str:
    """Describe in a sentence what a prediction rests on."""
    parts = reason["parts"]
    assert isinstance(parts, list)
    described = []
    for part in parts:
        if part["known"]:
            described.append(f"{part['target']} is known")
        elif not part["neighbours"]:
            described.append(f"no view knows {part['target']}: the mean of the known effects")
        else:
            near = part["neighbours"][0]
            also = ", ".join(f"{each['target']} {each['similarity']:.2f}" for each in part["neighbours"])
            shared = f"; shared with {near['target']}: {'; '.join(near['shared'])}" if near["shared"] else ""
            described.append(f"{part['target']} from {also}{shared}")
    return ". ".join(described)
