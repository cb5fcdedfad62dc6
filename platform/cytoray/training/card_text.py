"""Format the numbers of a run card: sensible digits, units, and words for missing values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cytoray import progress

NOT_MEASURED, NOT_FINITE = "not measured", "not finite"
_HIGHER_IS_BETTER = (
    "accuracy",
    "precision",
    "recall",
    "f1",
    "pearson",
    "spearman",
    "correlation",
    "auc",
    "auroc",
    "r2",
)
_ABBREVIATIONS = {"mse": "mean squared error", "mae": "mean absolute error", "mre": "mean relative error"}


def number_text(value: float | None, unit: str = "") -> str:
    """Format with four digits and the unit: ``61.27``, ``12,345 steps``; None is "not measured"."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return NOT_FINITE
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.4g}"
    return f"{text} {unit}".rstrip()


def metric_text(value: float | None, name: str = "") -> str:
    """Format a metric with four digits, trailing zeros included: ``80.00``; counts are integers."""
    if value is None or not math.isfinite(value) or abs(value) >= 1000 or value == 0 or name.startswith("num_"):
        return number_text(value)
    return f"{value:#.4g}"


def scaled_text(value: float, unit: str) -> str:
    """Format with three digits and a decimal prefix: ``1.23 Ttoken/s`` for 1.23e12 token/s."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def percent_text(share: float) -> str:
    """Format a share as percent with at most three digits, never rounded to zero."""
    return f"{100 * share:.3g}%" if share < 0.1 else f"{100 * share:.1f}%"


def seconds_text(seconds: float | None) -> str:
    """Format a duration from milliseconds to days."""
    if seconds is None or not math.isfinite(seconds):
        return number_text(seconds)
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 100 else progress.time_text(seconds)


def metric_words(name: str) -> str:
    """Spell out a metric's name."""
    return _ABBREVIATIONS.get(name, name.replace("_", " "))


def is_higher_better(name: str) -> bool:
    """Whether higher values of this metric are better; for errors and losses lower ones are."""
    return any(part in _HIGHER_IS_BETTER for part in name.lower().split("_"))


@dataclass(frozen=True)
class Comparison:
    """The first row of a table of scores compared with the best of the others, by the first metric."""

    metric: str
    model: float
    baseline_name: str
    baseline: float

    @staticmethod
    def of(scores: Mapping[str, Mapping[str, float]]) -> Comparison | None:
        """Compare a table of scores; None if the model or all baselines lack a finite value."""
        metric = next((name for row in scores.values() for name in row if not name.startswith("num_")), None)
        if metric is None:
            return None
        model, *baselines = [(name, row.get(metric, math.nan)) for name, row in scores.items()]
        finite = [(name, value) for name, value in baselines if math.isfinite(value)]
        if not finite or not math.isfinite(model[1]):
            return None
        best = (max if is_higher_better(metric) else min)(finite, key=lambda row: row[1])
        return Comparison(metric, model[1], *best)

    def ratio_text(self, value: float | None) -> str:
        """Format the ratio of a row's metric to the best baseline's; a dash if undefined."""
        if value is None or not math.isfinite(value) or self.baseline == 0:
            return "-"
        return f"{value / self.baseline:.3f}"

    @property
    def words(self) -> str:
        """The comparison as one sentence."""
        words = metric_words(self.metric)
        better = self.model > self.baseline if is_higher_better(self.metric) else self.model < self.baseline
        verdict = "better than" if better else "as good as" if self.model == self.baseline else "worse than"
        return (
            f"On held-out cells its {words} is {metric_text(self.model)}, {verdict} the best baseline "
            f"({self.baseline_name}: {metric_text(self.baseline)}; ratio {self.ratio_text(self.model)})."
        )


@dataclass(frozen=True)
class FigureRow:
    """One figure over the run, formatted."""

    name: str
    median: str
    mean: str
    span: str  # 10th to 90th percentile over steps


def figure_rows(history: Sequence[Mapping[str, float]]) -> list[FigureRow]:
    """Summarise throughput and waits over the kept steps; means are weighted by step time."""
    kinds: dict[str, tuple[str, Callable[[float], str]]] = {
        "cells_per_s": ("cells per second", number_text),
        "tokens_per_s": ("tokens per second", number_text),
        "needed_flops_per_s": ("operations that the objective needs", lambda value: scaled_text(value, "FLOP/s")),
        "mfu": ("share of the accelerators' peak (MFU)", percent_text),
        "step_s": ("time of a step", seconds_text),
        "data_wait_share": ("time spent waiting for data", percent_text),
        "checkpoint_stall_share": ("time stopped by checkpoints", percent_text),
    }
    return [_figure_row(history, name, words=words, text=text) for name, (words, text) in kinds.items()]


def _figure_row(
    history: Sequence[Mapping[str, float]], name: str, *, words: str, text: Callable[[float], str]
) -> FigureRow:
    rows = [(point[name], point.get("step_s", 1.0)) for point in history if math.isfinite(point.get(name, math.nan))]
    if not rows:
        return FigureRow(words, NOT_MEASURED, "", "")
    values, seconds = np.array(rows).T
    usable = name != "step_s" and bool(np.isfinite(seconds).all()) and seconds.sum() > 0
    mean = float(np.average(values, weights=seconds if usable else None))
    low, median, high = (float(value) for value in np.quantile(values, (0.1, 0.5, 0.9)))
    return FigureRow(words, text(median), text(mean), f"{text(low)} to {text(high)}")
