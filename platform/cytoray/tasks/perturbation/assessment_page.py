"""Sections of the page of a perturbation assessment, beside the table of metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import Section, details_rows, number, png
from cytoray.tasks.perturbation.figures import (
    draw_calibration,
    draw_heat_map,
    draw_scatter,
    draw_top_genes,
)
from cytoray.tasks.perturbation.judging import Answers, Truth

METRICS = (
    "Metrics are means over the measurable perturbations: those whose effects in two halves of the cells correlate by "
    "0.4. WMSE: squared error weighted by how significant each gene is, in cells that are not scored; R2W: 1 less its "
    "ratio to that of the mean; PDS: rank of the true effect among all by distance from the predicted one; "
    "delta-pert: less the mean of the training effects. ceiling: what one half of the cells predicts of the other."
)
UNITS = (
    "agreement: correlation of two halves; mean, product, ceiling: Pearson of the effect. relative error: WMSE of the "
    "product divided by that of the mean. saturated: the mean reaches 80 % of the ceiling."
)
_SHOWN = 60  # rows of a table
_DRAWN = 9


def perturbation_sections(
    assessment: Assessment, truth: Truth, answers: Answers, symbols: Sequence[str]
) -> list[Section]:
    """Return the sections of the page."""
    details = assessment.details
    order = np.argsort(-truth.agreement, kind="stable")
    shown = [row for row in order if truth.measurable[row]][:_DRAWN] or list(order[:_DRAWN])
    columns = ("method", "wmse", "r2w", "pearson_delta_pert", "pds", "pearson_delta")
    strata = ("stratum", "number", "mean", "product", "mean_wmse", "product_wmse")
    rank = details["confidence_vs_error"]
    calibration = f"Rank correlation of confidence with a small relative error, over all: {number(rank)}."
    return [
        Section("Methods", METRICS, details_rows(columns, details["methods"])),
        Section("Strata", "", details_rows(strata, details["strata"])),
        Section("Perturbations", UNITS, _unit_rows(assessment)),
        Section("Observed and predicted effects", "A point is a gene.", image=png(draw_scatter(truth, answers, shown))),
        Section(
            "Genes that change most",
            "Boxes: the effect in the other perturbations; black: observed; colour: predicted.",
            image=png(draw_top_genes(truth, answers, shown[0], symbols)),
        ),
        Section("All effects", "Rows are perturbations.", image=png(draw_heat_map(truth, answers, symbols))),
        Section("Confidence", calibration, image=png(draw_calibration(details["units"])), is_small=True),
    ]


def _unit_rows(assessment: Assessment) -> list[list[str]]:
    header = ["", "cells", "agreement", "stratum", "mean", "product", "ceiling", "relative error", "confidence", "why"]
    rows = sorted(assessment.details["units"], key=lambda row: -(row["agreement"] or 0))
    keys = ("mean", "product", "ceiling", "relative_error", "confidence")
    return [header] + [
        [
            row["name"],
            f"{row['num_cells']:,}",
            number(row["agreement"]),
            row["stratum"],
            *(number(row[key]) for key in keys),
            row["reason"],
        ]
        for row in rows[:_SHOWN]
    ]
