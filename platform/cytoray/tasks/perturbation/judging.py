"""Judge predicted effects of perturbations that were left out: metrics with intervals, and a row per perturbation."""

# U units that are scored (perturbations, or cell types), G genes, D draws

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.assessment import MetricRow, row_of
from cytoray.evaluation.intervals import LEVEL, Interval, draw_rows, verdict_of
from cytoray.evaluation.perturbation import metrics
from cytoray.evaluation.perturbation.ceilings import MEASURABLE, Half, dynamic_range, finite_mean, stratum
from cytoray.evaluation.perturbation.significance import LEVEL as SIGNIFICANT

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
NUM_DRAWS = 1000
FLAT = 0.1  # dynamic range below which a metric cannot tell methods apart
ERRORS = frozenset({"wmse", "mae"})  # less is better
PERFECT = {"wmse": 0.0, "mae": 0.0}


@dataclass(frozen=True, eq=False)
class Truth:
    """The measured effects of U units, and what the data allow."""

    names: tuple[str, ...]
    deltas: Float64  # (U, G)
    mask: Bools  # (U, G) genes that count
    p_values: Float64  # (U, G) adjusted
    num_cells: Float64  # (U,)
    agreement: Float64  # (U,) correlation of two halves
    halves: tuple[Half, Half]
    groups: tuple[str, ...]  # (U,) the discrimination score ranks the units of a group

    @property
    def measurable(self) -> Bools:
        """Whether each unit has an effect that two halves of its cells agree on."""
        found: Bools = self.agreement >= MEASURABLE
        return found


@dataclass(frozen=True, eq=False)
class Answers:
    """Effects predicted without the unit itself, by method, and the confidence in those of the product."""

    product: Float64  # (U, G)
    baseline: Float64  # (U, G) mean of the known effects
    others: Mapping[str, Float64]  # (U, G) of further simple methods
    confidence: Float64  # (U,)
    changed: Mapping[str, Float64]  # (U,) overlap of significant genes by column, NaN if it was not computed

    @property
    def columns(self) -> dict[str, Float64]:
        """The predictions by the column of the report; the floor is no change."""
        return {"floor": np.zeros_like(self.product), "baseline": self.baseline, "product": self.product}


def judge(truth: Truth, answers: Answers, *, seed: int) -> tuple[dict[str, MetricRow], dict[str, Any], list[str]]:
    """Return the metrics of the report, the deciding ones first, its tables, and warnings.

    Metrics are of the measurable units; without any, of all units, with a warning.
    """
    warnings = []
    scored = np.flatnonzero(truth.measurable)
    if not len(scored):
        warnings.append(
            f"no effect is measurable: the halves of no perturbation correlate by {MEASURABLE:g}; all are scored, but "
            "their correlations mean little"
        )
        scored = np.arange(len(truth.names))
    columns = answers.columns | {"ceiling": None}
    by_column = {name: _per_unit(truth, answers, values, name) for name, values in columns.items()}
    draws = draw_rows(np.arange(len(scored)), num_draws=NUM_DRAWS, seed=seed)
    rows = {
        name: _metric(name, {column: found[name][scored] for column, found in by_column.items()}, draws)
        for name in by_column["product"]
    }
    rows |= _single(truth, answers, scored)
    diversity = rows["diversity_ratio"].product
    if diversity is not None and diversity < metrics.COLLAPSED:
        warnings.append(
            f"diversity ratio {diversity:.2f}: predictions differ much less from each other than the effects do"
        )
    flat = _flat(rows)
    if flat:
        warnings.append(f"these data cannot tell methods apart by {', '.join(flat)}: their ceiling is near the mean")
    relative = by_column["product"]["wmse"] / np.maximum(by_column["baseline"]["wmse"], 1e-12)
    details = {
        "units": _unit_rows(truth, answers, by_column, relative),
        "methods": _method_rows(truth, answers, scored),
        "strata": _strata(truth, by_column),
        "confidence_vs_error": metrics.rank_correlation(answers.confidence, -relative),
        "num_scored": len(scored),
    }
    return rows, details, warnings


def _per_unit(truth: Truth, answers: Answers, predicted: Float64 | None, column: str) -> dict[str, Float64]:
    """Metrics of each unit; ``predicted`` None stands for the other half of the cells, judged on a half."""
    halves = [(half.duplicate if predicted is None else predicted, half.truth, half.weights) for half in truth.halves]
    plain = halves if predicted is None else [(predicted, truth.deltas, np.empty(0))]
    mean = answers.baseline
    changed = (truth.p_values < SIGNIFICANT) & truth.mask

    def average(values: list[Float64]) -> Float64:
        """Return the mean over the halves."""
        found: Float64 = np.mean(values, axis=0)
        return found

    found = {
        "wmse": average([metrics.weighted_error(a, b, w) for a, b, w in halves]),
        "r2w": average([metrics.weighted_r2(a, b, mean, w) for a, b, w in halves]),
        "pearson_delta_pert": average([metrics.pearson_delta(a - mean, b - mean, truth.mask) for a, b, _ in plain]),
        "pds": average([_discrimination(truth, a, b, "l1") for a, b, _ in plain]),
        "pearson_delta": average([metrics.pearson_delta(a, b, truth.mask) for a, b, _ in plain]),
        "pds_cosine": average([_discrimination(truth, a, b, "cosine") for a, b, _ in plain]),
        "top20_overlap": average([metrics.top_overlap(a, b, truth.mask) for a, b, _ in plain]),
        "direction_match": average([metrics.direction_match(a, b, changed) for a, b, _ in plain]),
        "spearman_lfc": average([metrics.spearman_changed(a, b, changed) for a, b, _ in plain]),
        "mae": average([metrics.mean_absolute_error(a, b, truth.mask) for a, b, _ in plain]),
    }
    nothing = np.full(len(truth.names), np.nan)
    return found | {"changed_overlap": np.asarray(answers.changed.get(column, nothing), np.float64)}


def _discrimination(truth: Truth, predicted: Float64, true: Float64, by: Any) -> Float64:
    """Discrimination of each unit among those of its group."""
    found = np.full(len(truth.names), np.nan)
    groups = np.array(truth.groups)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        places = np.arange(len(rows))
        found[rows] = metrics.discrimination(predicted[rows], true[rows], truth.mask[rows], rows=places, by=by)
    return found


def _metric(name: str, values: Mapping[str, Float64], draws: list[npt.NDArray[np.int64]]) -> MetricRow:
    """One metric of all columns over the scored units, and the comparison of product and baseline."""
    means = {column: finite_mean(each) for column, each in values.items()}
    row = row_of({column: mean for column, mean in means.items() if np.isfinite(mean)})
    differences = values["product"] - values["baseline"]
    if not np.isfinite(differences).any():
        return row
    drawn = np.array([finite_mean(differences[rows]) for rows in draws])
    low, high = (float(x) for x in np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    verdict = verdict_of(Interval(-high, -low) if name in ERRORS else Interval(low, high))
    return MetricRow(row.floor, row.baseline, row.model, row.product, row.ceiling, Interval(low, high), verdict)


def _single(truth: Truth, answers: Answers, scored: npt.NDArray[np.int64]) -> dict[str, MetricRow]:
    """Metrics of all units together."""
    true_size = metrics.effect_sizes(truth.deltas, truth.mask)
    sizes = {
        name: metrics.correlation(metrics.effect_sizes(values, truth.mask), true_size)
        for name, values in answers.columns.items()
    }
    shared = truth.mask[scored].all(axis=0)  # a perturbed gene alone would make predictions differ
    diversity = {
        name: metrics.diversity_ratio(values[scored][:, shared], truth.deltas[scored][:, shared])
        for name, values in answers.columns.items()
    }
    return {
        "effect_size_correlation": row_of({name: each for name, each in sizes.items() if np.isfinite(each)}),
        "diversity_ratio": row_of({name: each for name, each in diversity.items() if np.isfinite(each)}),
    }


def _flat(rows: Mapping[str, MetricRow]) -> list[str]:
    """Names of metrics whose ceiling is hardly above the mean (DRF)."""
    found = []
    for name in ("wmse", "r2w", "pds", "pearson_delta", "mae"):
        row = rows[name]
        if row.baseline is not None and row.ceiling is not None:
            share = dynamic_range(row.baseline, row.ceiling, PERFECT.get(name, 1.0))
            if share < FLAT:
                found.append(name)
    return found


def _unit_rows(
    truth: Truth, answers: Answers, by_column: Mapping[str, Mapping[str, Float64]], relative: Float64
) -> list[dict[str, Any]]:
    rows = []
    for place, name in enumerate(truth.names):
        mean, ceiling = (float(by_column[column]["pearson_delta"][place]) for column in ("baseline", "ceiling"))
        rows.append(
            {
                "name": name,
                "num_cells": int(truth.num_cells[place]),
                "agreement": _finite(truth.agreement[place]),
                "stratum": stratum(float(truth.agreement[place]), mean, ceiling) or "not measurable",
                "mean": mean,
                "product": float(by_column["product"]["pearson_delta"][place]),
                "ceiling": ceiling,
                "relative_error": float(relative[place]),
                "confidence": float(answers.confidence[place]),
                "num_changed": int(((truth.p_values[place] < SIGNIFICANT) & truth.mask[place]).sum()),
            }
        )
    return rows


def _method_rows(truth: Truth, answers: Answers, scored: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """The deciding metrics of each method over the scored units."""
    methods = {"no change": answers.columns["floor"], "mean": answers.baseline, **answers.others}
    rows = []
    for name, values in (methods | {"product": answers.product}).items():
        found = _per_unit(truth, answers, values, "")
        keys = ("wmse", "r2w", "pearson_delta_pert", "pds", "pearson_delta")
        rows.append({"method": name} | {key: finite_mean(found[key][scored]) for key in keys})
    return rows


def _strata(truth: Truth, by_column: Mapping[str, Mapping[str, Float64]]) -> list[dict[str, Any]]:
    """Mean of product and baseline in each stratum."""
    mean, ceiling = (by_column[column]["pearson_delta"] for column in ("baseline", "ceiling"))
    kinds = [
        stratum(float(a), float(b), float(c)) or "not measurable"
        for a, b, c in zip(truth.agreement, mean, ceiling, strict=True)
    ]
    rows = []
    for kind in ("saturated", "resistant", "not measurable"):
        there = np.array([each == kind for each in kinds])
        if there.any():
            error = {column: finite_mean(by_column[column]["wmse"][there]) for column in ("baseline", "product")}
            rows.append(
                {
                    "stratum": kind,
                    "number": int(there.sum()),
                    "mean": finite_mean(mean[there]),
                    "product": finite_mean(by_column["product"]["pearson_delta"][there]),
                    "mean_wmse": error["baseline"],
                    "product_wmse": error["product"],
                }
            )
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
