"""Draw predicted effects beside observed ones."""

# U units, G genes

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cytoray.evaluation.perturbation.metrics import NUM_TOP
from cytoray.pages.charts import COLOURS, FAINT, INK
from cytoray.tasks.perturbation.judging import Answers, Truth

MOST_ROWS, MOST_COLUMNS = 60, 80


def draw_scatter(truth: Truth, answers: Answers, rows: Sequence[int]) -> Figure:
    """Draw the predicted against the observed effect of each gene, a panel per perturbation."""
    columns = min(3, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = Figure(figsize=(2.7 * columns, 2.7 * lines), layout="constrained")
    for place, row in enumerate(rows, 1):
        axes = figure.add_subplot(lines, columns, place)
        use = truth.mask[row]
        observed, predicted = truth.deltas[row, use], answers.product[row, use]
        axes.axline((0, 0), slope=1, color=FAINT, linewidth=0.8)
        axes.scatter(observed, predicted, s=6, color=COLOURS[0], linewidths=0)
        axes.set_title(truth.names[row], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("observed change of log1p expression", fontsize=9)
    figure.supylabel("predicted", fontsize=9)
    return figure


def draw_top_genes(truth: Truth, answers: Answers, row: int, symbols: Sequence[str]) -> Figure:
    """Draw the genes that one perturbation changes most: boxes of the other effects, its own and the predicted one."""
    size = np.where(truth.mask[row], np.abs(truth.deltas[row]), -1)
    genes = np.argsort(-size, kind="stable")[: min(NUM_TOP, int(truth.mask[row].sum()))]
    others = np.delete(truth.deltas[:, genes], row, axis=0)
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(genes))
    if len(others):
        axes.boxplot(list(others.T), positions=list(places), widths=0.6, showfliers=False, medianprops={"color": FAINT})
    axes.scatter(places, truth.deltas[row, genes], color=INK, s=22, label="observed", zorder=3)
    axes.scatter(places, answers.product[row, genes], color=COLOURS[6], s=22, marker="D", label="predicted", zorder=3)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_xticks(places, [symbols[gene] for gene in genes], rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="change of log1p expression", title=truth.names[row])
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def draw_heat_map(truth: Truth, answers: Answers, symbols: Sequence[str]) -> Figure:
    """Draw observed and predicted effects of the genes that vary most between perturbations."""
    rows = np.argsort(-truth.agreement, kind="stable")[:MOST_ROWS]
    genes = np.argsort(-truth.deltas[rows].std(axis=0), kind="stable")[:MOST_COLUMNS]
    genes = genes[np.argsort(truth.deltas[rows][:, genes].mean(axis=0), kind="stable")]
    limit = max(float(np.quantile(np.abs(truth.deltas[np.ix_(rows, genes)]), 0.98)), 1e-9)
    figure = Figure(figsize=(9.0, 1.2 + 0.34 * len(rows)), layout="constrained")
    image = None
    for place, (title, values) in enumerate((("observed", truth.deltas), ("predicted", answers.product)), 1):
        axes = figure.add_subplot(2, 1, place)
        image = axes.imshow(values[np.ix_(rows, genes)], cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set_yticks(range(len(rows)), [truth.names[row] for row in rows], fontsize=6)
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
    last = figure.axes[-1]
    if len(genes) <= MOST_COLUMNS:
        last.set_xticks(range(len(genes)), [symbols[gene] for gene in genes], rotation=90, fontsize=4)
    assert image is not None
    figure.colorbar(image, ax=figure.axes, label="change of log1p expression", shrink=0.6)
    return figure


def draw_calibration(units: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the error of each prediction, as a share of that of the mean, against its confidence."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for kind, colour in (("saturated", COLOURS[1]), ("resistant", COLOURS[0]), ("not measurable", FAINT)):
        some = [unit for unit in units if unit["stratum"] == kind]
        if some:
            axes.scatter(
                [unit["confidence"] for unit in some],
                [min(unit["relative_error"], 3.0) for unit in some],
                color=colour,
                s=18,
                label=kind,
            )
    axes.axhline(1, color=FAINT, linewidth=0.8)
    axes.set(xlabel="confidence", ylabel="error / error of the mean", ylim=(0, 3.1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure
