"""Judge predicted proteins of all scored cells together: metrics with intervals, and a table per protein."""

# C scored cells, P proteins, D draws

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.assessment import MetricRow
from cytoray.evaluation.intervals import LEVEL, Interval, verdict_of
from cytoray.evaluation.splits import Split
from cytoray.tasks.multiomic.paired import Float64, PairedCells
from cytoray.tasks.multiomic.scoring import (
    draw_weights,
    fit_mixture,
    noise_ceiling,
    positive_auroc,
    ranks,
    rows_by_type,
    squared_errors,
    weighted_correlations,
    within_types,
)

NUM_DRAWS = 1000
Score = Callable[[Float64, Float64 | None], Float64]  # of predictions (C, P), over all cells or each draw's


@dataclass(frozen=True, eq=False)
class SplitAnswers:
    """Predictions of the T test cells of one split, and how they were chosen."""

    product: Float64  # (T, P)
    members: Mapping[str, Float64]  # (T, P) by member
    floor: Float64  # (P,) the mean of the training cells
    weights: Mapping[str, Float64]  # (P,) by member
    baseline: str  # the best simple member
    transformer: str | None  # the best member that sees the transformer alone
    chosen: str
    why: str
    scores: Mapping[str, float]  # mean Pearson correlation on cells not seen, by candidate
    options: Mapping[str, Mapping[str, float]]  # of each member


@dataclass(eq=False)
class Pooled:
    """Predictions (C, P) of all splits, each of cells that were not trained on."""

    product: Float64
    baseline: Float64
    model: Float64 | None
    floor: Float64
    members: dict[str, Float64] = field(default_factory=dict)

    @classmethod
    def empty(cls, scored: PairedCells) -> Pooled:
        """Return room for the predictions of the scored cells."""
        shape = scored.proteins.targets.shape
        model = np.full(shape, np.nan) if scored.embeddings is not None else None
        return cls(np.full(shape, np.nan), np.full(shape, np.nan), model, np.full(shape, np.nan))

    def add(self, split: Split, found: SplitAnswers) -> None:
        """Add the predictions of one split."""
        rows = split.test
        self.product[rows], self.baseline[rows] = found.product, found.members[found.baseline]
        self.floor[rows] = found.floor
        if self.model is not None and found.transformer is not None:
            self.model[rows] = found.members[found.transformer]
        for name, values in found.members.items():
            self.members.setdefault(name, np.full(self.product.shape, np.nan))[rows] = values

    @property
    def columns(self) -> dict[str, Float64]:
        """The predictions by the column of the report."""
        found = {"floor": self.floor, "baseline": self.baseline, "product": self.product}
        return found | ({"model": self.model} if self.model is not None else {})


def judge_proteins(scored: PairedCells, pooled: Pooled, seed: int) -> tuple[dict[str, MetricRow], dict[str, Any]]:
    """Return the metrics of the report, the first one the headline, and its tables."""
    truth = scored.proteins.targets
    weights_DC = draw_weights(_units(scored), num_draws=NUM_DRAWS, seed=seed)
    ceilings = noise_ceiling(scored.proteins.values, seed=seed) if scored.proteins.are_counts else None
    ranked = ranks(truth)
    types = rows_by_type(scored.labels) if scored.labels is not None else {}

    def correlations(values: Float64, weights: Float64 | None) -> Float64:
        """Return the correlation of each protein."""
        return weighted_correlations(truth, values, weights)

    def mean(values: Float64, weights: Float64 | None) -> Float64:
        """Return the mean correlation."""
        return _means(correlations(values, weights))

    def worst(values: Float64, weights: Float64 | None) -> Float64:
        """Return the lowest correlation."""
        lowest: Float64 = np.nanmin(np.atleast_2d(correlations(values, weights)), axis=-1)
        return lowest

    def spearman(values: Float64, weights: Float64 | None) -> Float64:
        """Return the mean rank correlation."""
        return _means(weighted_correlations(ranked, ranks(values), weights))

    def within(values: Float64, weights: Float64 | None) -> Float64:
        """Return the mean correlation within types."""
        return within_types(truth, values, list(types.values()), weights)

    def error(values: Float64, weights: Float64 | None) -> Float64:
        """Return the root mean squared error."""
        return squared_errors(truth, values, weights)

    scores: dict[str, Score] = {"pearson": mean}
    if types:
        scores["within_type_pearson"] = within
    scores |= {"worst_protein_pearson": worst, "spearman": spearman, "rmse": error}
    metrics = {
        name: _row(score, pooled.columns, weights_DC, lower_is_better=name == "rmse") for name, score in scores.items()
    }
    if ceilings is not None:
        metrics["pearson"] = _with_ceiling(metrics["pearson"], float(np.nanmean(ceilings)))
    rows, auroc = _per_protein(scored, pooled, weights_DC, ceilings)
    if auroc is not None:
        metrics["positive_auroc"] = auroc
    details: dict[str, Any] = {
        "proteins": rows,
        "members": [
            {"member": name, "pearson": float(mean(values, None)[0]), "rmse": float(error(values, None)[0])}
            for name, values in pooled.members.items()
        ],
    }
    if types:
        details["types"] = _per_type(truth, pooled, types)
    return metrics, details


def _means(correlations: Float64) -> Float64:
    """Mean over proteins: of all cells (1,), or of each draw (D,)."""
    found: Float64 = np.nanmean(np.atleast_2d(correlations), axis=-1)
    return found


def _row(score: Score, columns: Mapping[str, Float64], weights_DC: Float64, *, lower_is_better: bool) -> MetricRow:
    """One metric of all columns, and the paired comparison of product and baseline."""
    values = {name: _finite(float(score(predicted, None)[0])) for name, predicted in columns.items()}
    drawn = score(columns["product"], weights_DC) - score(columns["baseline"], weights_DC)
    drawn = drawn[np.isfinite(drawn)]
    row = MetricRow(values["floor"], values["baseline"], values.get("model"), values["product"])
    if not len(drawn):
        return row
    low, high = (float(limit) for limit in np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    interval = Interval(low, high)
    verdict = verdict_of(Interval(-high, -low) if lower_is_better else interval)
    return MetricRow(row.floor, row.baseline, row.model, row.product, None, interval, verdict)


def _with_ceiling(row: MetricRow, ceiling: float) -> MetricRow:
    return MetricRow(row.floor, row.baseline, row.model, row.product, _finite(ceiling), row.interval, row.verdict)


def _per_protein(
    scored: PairedCells, pooled: Pooled, weights_DC: Float64, ceilings: Float64 | None
) -> tuple[list[dict[str, Any]], MetricRow | None]:
    """A row per protein, and the mean AUROC of positive against negative cells over proteins that have both."""
    truth = scored.proteins.targets
    by_column = {name: weighted_correlations(truth, values) for name, values in pooled.columns.items()}
    product, baseline = (weighted_correlations(truth, each, weights_DC) for each in (pooled.product, pooled.baseline))
    limits = np.nanquantile(product - baseline, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rows, aurocs = [], []
    for place, name in enumerate(scored.proteins.names):
        mixture = fit_mixture(truth[:, place])
        row: dict[str, Any] = {"protein": name}
        row |= {column: _finite(float(values[place])) for column, values in by_column.items()}
        row["ceiling"] = None if ceilings is None else _finite(float(ceilings[place]))
        row["interval"] = [_finite(float(limit)) for limit in limits[:, place]]
        row["positive"] = mixture.share if mixture else None
        row["auroc"] = None
        if mixture is not None:
            each = {
                column: positive_auroc(truth[:, place], values[:, place], mixture)
                for column, values in pooled.columns.items()
            }
            row["auroc"] = each["product"]
            aurocs.append(each)
        rows.append(row)
    if not aurocs:
        return rows, None
    means = {column: float(np.mean([each[column] for each in aurocs])) for column in aurocs[0]}
    return rows, MetricRow(0.5, means["baseline"], means.get("model"), means["product"])


def _per_type(truth: Float64, pooled: Pooled, types: Mapping[str, npt.NDArray[np.int64]]) -> list[dict[str, Any]]:
    return [
        {
            "type": name,
            "num_cells": len(rows),
            "baseline": _finite(float(within_types(truth, pooled.baseline, [rows])[0])),
            "product": _finite(float(within_types(truth, pooled.product, [rows])[0])),
        }
        for name, rows in types.items()
    ]


def _units(cells: PairedCells) -> npt.NDArray[Any]:
    """The unit of each cell for the bootstrap: its batch if there are several, else the cell itself."""
    if cells.batches is not None and len(set(cells.batches)) > 2:
        return np.asarray(cells.batches, str)
    return np.arange(cells.num_cells)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
