"""Write figures as PNG, SVG or PDF, whole or not at all; equal figures give equal files."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from matplotlib import rc_context
from matplotlib.figure import Figure

from cytoray.errors import ConfigError
from cytoray.evaluation.report import replace_file

PictureFormat = Literal["png", "svg", "pdf"]
Paths = Path | Sequence[Path]
DPI = 150
_DATES: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_figure(figure: Figure, path: Paths, **options: Any) -> None:
    """Write a figure to one or several paths, each in the format of its suffix; ConfigError for another suffix."""
    paths = {item: picture_format(item) for item in ([path] if isinstance(path, Path) else path)}
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "cytoray"}):
        # matplotlib's own font has no Chinese, Japanese or Korean: a box is drawn, which is no reason to fail.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        for item, kind in paths.items():
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, dpi=DPI, metadata=_DATES[kind], **options)
            replace_file(item, picture.getvalue())


def picture_format(path: Path) -> PictureFormat:
    """The format that the suffix of ``path`` names, png without one; ConfigError for any other."""
    suffix = path.suffix.removeprefix(".").lower() or "png"
    kinds: dict[str, PictureFormat] = {kind: kind for kind in get_args(PictureFormat)}
    if suffix not in kinds:
        raise ConfigError(f"{path}: unknown kind of picture {path.suffix!r}.", remedy="Use .png, .svg or .pdf.")
    return kinds[suffix]
