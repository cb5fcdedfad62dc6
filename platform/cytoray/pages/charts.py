"""The look of charts in pages, and figures as files that a page can carry inside it; equal figures give equal bytes."""

from __future__ import annotations

import base64
import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PictureFormat = Literal["png", "svg", "pdf"]
# Matthew Petroff's cycle, chosen by survey and for the common colour blindnesses, with a green and a pink in place of
# its two greys, which look like missing values. Ten hues are about all that one can tell apart.
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#92dadd", "#a96b59", "#e76300", "#b9ac70", "#39e6a5", "#cc5280")
INK, FAINT, GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
DPI = 150
# Neither the time nor the version of matplotlib is kept in a file.
_METADATA: dict[PictureFormat, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "font.family": ["sans-serif"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # names are arbitrary
}
_SIZES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@contextlib.contextmanager
def page_style() -> Iterator[None]:
    """Draw in the style of pages within the block."""
    with rc_context(_STYLE):
        yield


def empty_axes(size_in: tuple[float, float], *, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """Return a figure of a size in inches with labelled axes and horizontal grid lines."""
    figure = Figure(figsize=size_in, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure, axes


def encode_figure(figure: Figure, kind: PictureFormat, **options: Any) -> bytes:
    """Encode a figure; a glyph that matplotlib's own font lacks (Chinese, Japanese, Korean) becomes a box."""
    picture = io.BytesIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "cytoray"}):
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        figure.savefig(picture, format=kind, dpi=DPI, metadata=_METADATA[kind], **options)
    return picture.getvalue()


def svg_uri(figure: Figure) -> str:
    """Return a figure as a data URI of SVG."""
    return "data:image/svg+xml;base64," + base64.b64encode(encode_figure(figure, "svg")).decode()


def short_number(value: float, _: object = None) -> str:
    """Format 1,500,000 as 1.5M, for the ticks of an axis."""
    for size, letter in _SIZES:
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def short_if_round(value: float, _: object = None) -> str:
    """Label only 2 and 5 between powers of ten."""
    lead = value / 10 ** math.floor(math.log10(value)) if value > 0 else 0
    return short_number(value) if round(lead, 6) in (2, 5) else ""
