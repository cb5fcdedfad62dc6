"""The curves of a run card: its losses as PNG for other pages, all curves as SVG embedded in the card."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cytoray.pages.charts import (
    COLOURS,
    FAINT,
    INK,
    empty_axes,
    encode_figure,
    page_style,
    short_if_round,
    short_number,
    svg_uri,
)

LOSS_SIZE_IN, SMALL_SIZE_IN = (8.0, 4.2), (5.4, 2.5)
FEW_POINTS = 30  # curves with at most this many points get markers
LOG_FROM = 8.0  # ratio of largest to smallest value from which an axis is logarithmic
TOTAL, CONSTANT = "loss", "mean_bin"
_FIGURES = {"step", "learning_rate", "gradient_norm", "mfu", "skipped", "accuracy"}
_FIGURE_ENDINGS = ("_s", "_share", "_bytes")
Points = Sequence[Mapping[str, float]]
Curve = tuple[list[float], list[float]]


def loss_names(points: Points) -> list[str]:
    """Names of losses in history or validation, by elimination, so that new objectives need no entry here."""
    names = dict.fromkeys(name for point in points for name in point)
    return [name for name in names if name not in _FIGURES and not name.endswith(_FIGURE_ENDINGS)]


def curve(points: Points, name: str) -> Curve:
    """Steps and values of one figure, without those that are not finite."""
    pairs = [(point.get("step", math.nan), point.get(name, math.nan)) for point in points]
    kept = [(step, value) for step, value in pairs if math.isfinite(step) and math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def plot_loss_png(history: Points, validation: Points) -> bytes:
    """Plot the loss and its parts, with those on held-out cells, as a PNG file."""
    with page_style():
        return encode_figure(_loss_figure(history, validation), "png")


def plot_loss_svg(history: Points, validation: Points) -> str:
    """Plot the same curves as an SVG data URI."""
    with page_style():
        return svg_uri(_loss_figure(history, validation))


def plot_figures(history: Points, names: Mapping[str, str], label: str, *, percent: bool = False) -> str | None:
    """Draw some figures of the history as an SVG data URI; None if none was measured."""
    if not any(curve(history, name)[0] for name in names):
        return None

    with page_style():
        figure, axes = _empty(SMALL_SIZE_IN, label)
        for (name, words), colour in zip(names.items(), COLOURS, strict=False):
            _draw(axes, curve(history, name), color=colour, linewidth=1.4, label=words)
        values = [value for name in names for value in curve(history, name)[1]]
        if percent:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        if "gradient_norm" not in names or not _spread(axes, values):
            axes.set_ylim(bottom=0)
        if len(names) > 1:
            figure.legend(loc="outside upper right", ncols=len(names), frameon=False, fontsize=8)
        return svg_uri(figure)


def _loss_figure(history: Points, validation: Points) -> Figure:
    """Draw training as thin lines, held-out cells as thick ones of the same colour, the best constant dashed."""
    figure, axes = _empty(LOSS_SIZE_IN, "loss")
    parts = [name for name in loss_names(history) if name != TOTAL]
    held_out = [name for name in loss_names(validation) if name not in (TOTAL, CONSTANT)]
    colours = dict(zip(dict.fromkeys([*parts, *held_out]), COLOURS * 9, strict=False))
    values: list[float] = []
    drawn = {name: curve(history, name) for name in ([TOTAL] if len(parts) != 1 else []) + parts}
    for name, line in drawn.items():
        values += line[1]
        words = "all together" if name == TOTAL and parts else name
        _draw(axes, line, color=colours.get(name, FAINT), linewidth=1.1, alpha=0.75, label=words)
    for name in held_out:
        line = curve(validation, name)
        values += line[1]
        words = f"{name}, held out"
        axes.plot(*line, color=colours[name], linewidth=2.2, marker="o", markersize=4.5, mec="white", label=words)
    constant = curve(validation, CONSTANT)
    if constant[0]:
        values += constant[1]
        steps = [step for line in drawn.values() for step in line[0]] + constant[0]
        level = constant[1][-1]  # the same at every checkpoint, as the cells are
        axes.plot([min(steps), max(steps)], [level] * 2, color=INK, linestyle="--", linewidth=1.2, label="mean bin")
    _spread(axes, values)
    if values:
        axes.legend(frameon=False, fontsize=8.5)
    else:
        axes.text(0.5, 0.5, "no loss was measured", transform=axes.transAxes, ha="center", color=INK)
        axes.set(xticks=[], yticks=[])
    return figure


def _draw(axes: Axes, line: Curve, **style: Any) -> None:
    if line[0]:
        axes.plot(*line, marker="o" if len(line[0]) <= FEW_POINTS else "", markersize=3, **style)


def _spread(axes: Axes, values: Sequence[float]) -> bool:
    """Make the axis logarithmic if the values need and allow it; return whether it was."""
    if not values or min(values) <= 0 or max(values) < LOG_FROM * min(values):
        return False
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(short_number))
    axes.yaxis.set_minor_formatter(FuncFormatter(short_if_round))
    return True


def _empty(size_in: tuple[float, float], y_label: str) -> tuple[Figure, Axes]:
    figure, axes = empty_axes(size_in, x_label="step", y_label=y_label)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_whole_or_short))
    axes.yaxis.set_major_formatter(FuncFormatter(short_number))
    return figure, axes


def _whole_or_short(value: float, _: object = None) -> str:
    """Format 2,500 in full, 15,000 as 15k."""
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}" if abs(value) < 10_000 else short_number(value)
