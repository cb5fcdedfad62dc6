"""The histograms of a data report, as SVG that a page can carry inside it."""

# K histogram bins

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cytoray.corpus.checking.profile import BINS_PER_OCTAVE
from cytoray.pages.charts import COLOURS, empty_axes, page_style, short_number, svg_uri
from cytoray.tokens.cells import Int64

FILL, EDGE = "#dfe8f1", COLOURS[0]
SIZE_IN = (5.4, 2.7)
MOST_LINES = len(COLOURS)  # files drawn one by one; beyond it only their sum


def plot_log_histograms(histograms: Mapping[str, Int64], label: str) -> str:
    """Draw histograms (K,) of ``profile.log2_histogram`` as an SVG data URI: all together filled, each one a line.

    Heights are shares of the cells counted, so that files of different size compare.
    """
    total = np.sum(list(histograms.values()), axis=0)
    seen = np.flatnonzero(total)
    with page_style():
        figure, axes = _empty("share of cells", label)
        if len(seen):
            # Small numbers fall on few of the fine bins: there four of them make one, so that no gaps show.
            width = 4 if seen[0] < 5 * BINS_PER_OCTAVE else 2
            first = max(0, seen[0] // width - 1) * width
            stop = first + (seen[-1] - first + 2 * width) // width * width
            edges = 2.0 ** (np.arange(first, stop + 1, width) / BINS_PER_OCTAVE)
            axes.stairs(_shares(total, first, stop, width), edges, fill=True, color=FILL)
            lines = list(histograms.values()) if len(histograms) <= MOST_LINES else [total]
            for colour, histogram in zip(COLOURS, lines, strict=False):
                axes.stairs(_shares(histogram, first, stop, width), edges, color=colour, linewidth=1.5, alpha=0.9)
            axes.set_xscale("log")
            axes.set_xlim(edges[0], edges[-1])
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
            axes.xaxis.set_minor_formatter(NullFormatter())
        return svg_uri(figure)


def plot_bins(bins: Int64) -> str:
    """Draw the share of entries in each bin (K,) as an SVG data URI; bin 0 has no entries."""
    with page_style():
        figure, axes = _empty("share of values", "bin")
        shares = bins[1:] / max(1, bins.sum())
        axes.bar(np.arange(1, len(bins)), shares, width=0.9, color=EDGE)
        axes.set_xlim(0, len(bins))
        return svg_uri(figure)


def _shares(histogram: Int64, first: int, stop: int, width: int) -> npt.NDArray[np.float64]:
    """Fine bins ``first`` to ``stop`` summed by ``width``, as shares of all that was counted."""
    fine = np.zeros(stop, np.int64)
    shared = min(stop, len(histogram))
    fine[:shared] = histogram[:shared]
    return np.asarray(fine[first:].reshape(-1, width).sum(axis=1) / max(1, histogram.sum()))


def _empty(y_label: str, x_label: str) -> tuple[Figure, Axes]:
    figure, axes = empty_axes(SIZE_IN, x_label=x_label, y_label=y_label)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    return figure, axes


def line_colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each file's line; empty if there are too many to draw."""
    return dict(zip(names, COLOURS, strict=False)) if len(names) <= MOST_LINES else {}
