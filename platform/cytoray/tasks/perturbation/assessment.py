"""Assess the prediction of perturbations on anyone's screen: the mean of the known effects, the operator, the noise.

Protocols: leave-target-out and leave-cell-type-out. Nothing is chosen on what is scored: views, ridge and shrinkage
come from leaving out the training targets (or types) in turn.
"""

# U units that are scored, G genes

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import AssessedTask
from cytoray.evaluation.perturbation.cells import make_cells
from cytoray.evaluation.perturbation.metrics import changed_overlap
from cytoray.evaluation.perturbation.significance import LEVEL, adjust, rank_test
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.tasks.perturbation.assess_config import AssessPerturbationConfig
from cytoray.tasks.perturbation.assessment_page import perturbation_sections
from cytoray.tasks.perturbation.judging import Answers, Truth, judge
from cytoray.tasks.perturbation.knowledge import build_members
from cytoray.tasks.perturbation.left_out import FEWEST_TARGETS, MOST_FOLDS, Units, leave_targets_out, leave_types_out
from cytoray.tasks.perturbation.reading import cell_type_column, read_screen
from cytoray.tasks.perturbation.screen import Columns, Screen
from cytoray.tasks.pieces import Pieces

Float64 = npt.NDArray[np.float64]
MOST_TESTED_UNITS, MOST_TESTED_CELLS, MOST_TESTED_GENES = 30, 300, 3_000  # of rank tests


def run_assessment(config: AssessPerturbationConfig, pieces: Pieces) -> AssessedTask:
    """Read the screen that ``config`` names and assess the prediction of its effects; each fold is a piece."""
    started = time.monotonic()
    columns = Columns(
        config.perturbation_key, config.control, config.batch_key, config.cell_type_key, config.covariates
    )
    screen, by_type, warnings = _read(config, columns)
    total = len(set(screen.cell_types or ())) if by_type else min(len(screen.targets), MOST_FOLDS)
    with progress.stage("assess", total=total, unit="folds") as advance:
        if by_type:
            units = leave_types_out(screen, pieces=pieces, advance=advance, seed=config.seed)
        else:
            members, notes = build_members(
                screen,
                gene_sets=config.gene_sets,
                model=_open(config),
                others=config.screen,
                columns=columns,
                pieces=pieces,
                seed=config.seed,
            )
            warnings += notes
            units = leave_targets_out(screen, members, pieces=pieces, advance=advance, seed=config.seed)
    answers = _answers(units)
    tested, _ = pieces.compute("tests", lambda: _changed(screen, units, answers, config.seed))
    answers = Answers(answers.product, answers.baseline, answers.others, answers.confidence, tested)
    metrics, details, doubts = judge(units.truth, answers, seed=config.seed)
    reasons = [reason for _, reason in sorted(_reasons(units).items())]
    for row, reason in zip(details["units"], reasons, strict=True):
        row["reason"] = reason
    details["facts"] = screen.facts
    assessment = Assessment(
        task="perturbation",
        data={"uri": screen.uri, "digest": screen.digest, "num_cells": screen.num_cells},
        split=units.sentence,
        metrics=metrics,
        chosen=dict(Counter(fold.chosen for fold in units.folds)),
        why=tuple(_why(units)),
        seeds=(config.seed,),
        seconds=time.monotonic() - started,
        model=config.model if not by_type else None,
        warnings=(*warnings, *doubts),
        details=details,
    )
    return AssessedTask(assessment, perturbation_sections(assessment, units.truth, answers, screen.symbols))


def _read(config: AssessPerturbationConfig, columns: Columns) -> tuple[Screen, bool, list[str]]:
    """Read the screen; also return whether cell types are left out, and warnings.

    Of a screen of too few targets cell types are left out, if a column has them.
    """
    screen = read_screen(config.data, columns)
    by_type = config.protocol == "leave-cell-type-out"
    if by_type or len(screen.targets) >= FEWEST_TARGETS:
        return screen, by_type, list(screen.warnings)
    key = config.cell_type_key or cell_type_column(config.data)
    if key is None:
        return screen, by_type, list(screen.warnings)
    screen = read_screen(config.data, replace(columns, cell_type=key))
    few = f"perturbed targets are too few to leave one out ({', '.join(screen.targets)})"
    note = f"{few}: cell types of {key!r} are left out instead"
    return screen, True, [*screen.warnings, note]


def _open(config: AssessPerturbationConfig) -> OpenedModel | None:
    """The model that is named."""
    if config.model is None:
        return None
    return open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)


def _answers(units: Units) -> Answers:
    """The predictions of all folds in the order of the units."""
    shape = units.truth.deltas.shape
    product, baseline = np.empty(shape), np.empty(shape)
    others = {name: np.empty(shape) for name in units.folds[0].others}
    confidence = np.empty(len(shape) and shape[0])
    for fold in units.folds:
        product[fold.rows], baseline[fold.rows], confidence[fold.rows] = fold.product, fold.mean, fold.confidence
        for name, values in fold.others.items():
            others[name][fold.rows] = values
    return Answers(product, baseline, others, confidence, {})


def _changed(screen: Screen, units: Units, answers: Answers, seed: int) -> dict[str, Float64]:
    """Overlap of significant genes by rank tests of cells, for the measurable units: of product and mean."""
    truth: Truth = units.truth
    found = {name: np.full(len(truth.names), np.nan) for name in ("baseline", "product")}
    expression = screen.cells.expression
    means = np.asarray(expression.mean(axis=0)).ravel()
    genes = np.sort(np.argsort(-means, kind="stable")[:MOST_TESTED_GENES])
    for row in np.flatnonzero(truth.measurable)[:MOST_TESTED_UNITS]:
        rng = np.random.default_rng([seed, row])
        control, perturbed = (
            expression[np.sort(rng.permutation(rows)[:MOST_TESTED_CELLS])][:, genes].tocsr()
            for rows in (units.controls[row], units.perturbed[row])
        )
        use = truth.mask[row, genes]
        true = adjust(rank_test(perturbed, control)[use])
        for name, values in (("baseline", answers.baseline), ("product", answers.product)):
            delta = values[row, genes]
            cells = make_cells(control, delta, num_cells=perturbed.shape[0], seed=seed)
            predicted = adjust(rank_test(cells, control)[use])
            found[name][row] = changed_overlap(predicted, true, delta[use], level=LEVEL)
    return found


def _reasons(units: Units) -> dict[int, str]:
    return {int(row): reason for fold in units.folds for row, reason in zip(fold.rows, fold.reasons, strict=True)}


def _why(units: Units) -> list[str]:
    found: list[Any] = []
    for fold in units.folds:
        names = ", ".join(units.truth.names[row] for row in fold.rows)
        found.append(f"without {names}: {fold.why}")
    return found
