"""Write figures as PNG, SVG or PDF, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure

from cytoray.drafts import replace_file
from cytoray.errors import ConfigError
from cytoray.pages.charts import PictureFormat, encode_figure

Paths = Path | Sequence[Path]


def save_figure(figure: Figure, path: Paths, **options: Any) -> None:
    """Write a figure to one or several paths, each in the format of its suffix; ConfigError for another suffix."""
    paths = {item: picture_format(item) for item in ([path] if isinstance(path, Path) else path)}
    for item, kind in paths.items():
        replace_file(item, encode_figure(figure, kind, **options))


def picture_format(path: Path) -> PictureFormat:
    """The format that the suffix of ``path`` names, png without one; ConfigError for any other."""
    suffix = path.suffix.removeprefix(".").lower() or "png"
    kinds: dict[str, PictureFormat] = {kind: kind for kind in get_args(PictureFormat)}
    if suffix not in kinds:
        raise ConfigError(f"{path}: unknown kind of picture {path.suffix!r}.", remedy="Use .png, .svg or .pdf.")
    return kinds[suffix]
