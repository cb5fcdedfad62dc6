"""Draw what an evaluation found as pictures (PNG, SVG or PDF): confusion matrix, cell embedding, loss curves."""

# C cells, D width, K labels

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cytoray.errors import ModelError, TrainingError
from cytoray.evaluation.classification import ClassificationScores
from cytoray.evaluation.figures import Paths, save_figure
from cytoray.pages.charts import COLOURS

Float = npt.NDArray[np.floating[Any]]
MARKERS = ("o", "^", "s", "D", "v", "P")  # labels beyond the number of colours take the same ones with another
WIDTH_IN = 8.0
LABEL_COLUMNS = 32  # longer labels lose their middle
SMALLEST_CELL_IN = 0.15  # of the confusion matrix: room for an 8 pt tick label, below which the figure grows instead
LARGEST_CELL_IN = 0.55


def plot_confusion(scores: ClassificationScores, path: Paths) -> None:
    """Write the confusion matrix (K, K) as a picture, see ``draw_confusion``."""
    save_figure(draw_confusion(scores), path)


def draw_confusion(scores: ClassificationScores) -> Figure:
    """Draw the confusion matrix (K, K): colour is the share of the true label's cells, the number their count."""
    num_labels = len(scores.labels)
    margin_in = 0.9 + 0.075 * max(_columns(_shortened(label)) for label in scores.labels)
    cell_in = max((WIDTH_IN - margin_in - 1.0) / num_labels, SMALLEST_CELL_IN)
    width_in = max(WIDTH_IN, num_labels * cell_in + margin_in + 1.0)
    height_in = max(num_labels * min(cell_in, LARGEST_CELL_IN), 1.2) + margin_in
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = figure.add_subplot()
    shares = scores.confusion / np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=axes, label="share of row", aspect=30, pad=0.02)
    _name_labels(axes, scores, size=min(9.0, 72 * cell_in * 0.75))
    _write_counts(axes, scores, shares=shares, cell_in=cell_in)
    axes.set(xlabel="predicted label", ylabel="true label (number of cells)")
    axes.set_title(f"accuracy {scores.accuracy:.3f}, macro F1 {scores.macro_f1:.3f}, cells {scores.num_cells:,}")
    return figure


def _name_labels(axes: Axes, scores: ClassificationScores, *, size: float) -> None:
    """Name rows and columns; slanted names of a column read better, but upright ones need less room."""
    names = [_shortened(label) for label in scores.labels]
    rows = [f"{name} ({row.num_true:,})" for name, row in zip(names, scores.per_label, strict=True)]
    axes.set_yticks(range(len(rows)), rows, fontsize=size)
    slant: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(names)), names, fontsize=size, **(slant if len(names) <= 15 else {"rotation": 90}))


def _write_counts(axes: Axes, scores: ClassificationScores, *, shares: Float, cell_in: float) -> None:
    """Write the counts that are not zero into their cells, unless they would not be legible there."""
    digits = len(str(scores.confusion.max()))
    size = min(9.0, 72 * cell_in * 0.85 / (0.64 * digits), 72 * cell_in * 0.6)
    if size < 4.5:
        return
    for row, column in np.argwhere(scores.confusion):
        colour = "white" if shares[row, column] > 0.55 else "black"
        count = str(scores.confusion[row, column])
        axes.text(column, row, count, ha="center", va="center", fontsize=size, color=colour)


def draw_reliability(confidence: Sequence[float], accuracy: Sequence[float]) -> Figure:
    """Draw the accuracy of bins of cells against their mean confidence; calibrated ones lie on the diagonal."""
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#9aa5b1", linewidth=1)
    axes.plot(confidence, accuracy, color=COLOURS[0], marker="o", markersize=4)
    axes.set(xlabel="mean probability of the predicted label", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_embedding(
    embeddings: Float, labels: Sequence[str], path: Paths, *, predicted: Sequence[str] | None = None, title: str
) -> None:
    """Draw cell embeddings (C, D) in the plane, coloured by label; with ``predicted``, a second panel shows those.

    The plane is UMAP's, or that of the first two principal components when there are fewer than ten cells. Raises
    ModelError if an embedding is not finite.
    """
    assert len(embeddings) == len(labels), f"{len(embeddings)} embeddings but {len(labels)} labels"
    assert predicted is None or len(predicted) == len(labels), "predicted and labels disagree in length"
    if not np.isfinite(embeddings).all():
        raise ModelError("Some cell embeddings are not finite.", remedy="Train again with a lower learning rate.")
    plane, axis = place_in_plane(np.asarray(embeddings, np.float32))
    panels = {"true label": labels} if predicted is None else {"true label": labels, "predicted label": predicted}
    styles = _styles(sorted({label for values in panels.values() for label in values}))
    num_columns = _legend_columns(list(styles))
    height_in = (5.6 if predicted is None else 4.2) + 0.2 * math.ceil(len(styles) / num_columns)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.suptitle(_shortened(title, limit=64))
    for position, (name, values) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), position)
        _draw_cells(axes, plane, labels=values, styles=styles)
        axes.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[], title=name)
    handles = [Line2D([], [], color=colour, marker=marker, linestyle="") for colour, marker in styles.values()]
    names = [_shortened(label) for label in styles]
    figure.legend(handles, names, loc="outside lower center", ncols=num_columns, fontsize=8, frameon=False)
    save_figure(figure, path)


def draw_groups(embeddings: Float, groups: Mapping[str, Sequence[str]]) -> Figure:
    """Draw cell embeddings (C, D) in one plane, a panel for each way to group the cells, with a legend of its own.

    Panels stand side by side; the plane is that of ``plot_embedding``.
    """
    plane, axis = place_in_plane(np.asarray(embeddings, np.float32))
    figure = Figure(figsize=(5.0 * len(groups), 5.6), layout="constrained")
    for position, (name, values) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(1, len(groups), position)
        styles = _styles(sorted(set(values)))
        _draw_cells(axes, plane, labels=values, styles=styles)
        axes.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2", xticks=[], yticks=[], title=name)
        handles = [Line2D([], [], color=colour, marker=marker, linestyle="") for colour, marker in styles.values()]
        names = [_shortened(label) for label in styles]
        columns = max(1, _legend_columns(list(styles)) // 2)
        axes.legend(
            handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=columns, fontsize=8, frameon=False
        )
    return figure


def plot_loss(history: Sequence[Mapping[str, Any]], path: Paths) -> None:
    """Draw every loss of a run against its step.

    ``history`` holds one mapping a log line, with ``step`` and any keys that contain "loss"; lines may lack some.
    Raises TrainingError if no finite loss is there.
    """
    curves = _loss_curves(history)
    if not curves:
        raise TrainingError("The run has recorded no loss to draw.", remedy="Train for at least one step.")
    figure = Figure(figsize=(WIDTH_IN, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), (colour, marker) in zip(curves.items(), _styles(list(curves)).values(), strict=True):
        steps, losses = zip(*points, strict=True)
        shape = marker if len(points) <= 30 else ""  # a curve of few points, or of one, shows them
        axes.plot(steps, losses, color=colour, marker=shape, markersize=4, label=_shortened(name))
    axes.set(xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)


def _loss_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in history:
        for name, value in line.items():
            if "loss" in name and value is not None and math.isfinite(value):
                curves.setdefault(name, []).append((line["step"], value))
    return curves


def place_in_plane(embeddings_CD: npt.NDArray[np.float32]) -> tuple[Float, str]:
    """Place the cells in two dimensions (C, 2), and name the axes."""
    if len(embeddings_CD) < 10 or np.ptp(embeddings_CD, axis=0).max() == 0:
        return _principal_components(embeddings_CD), "PC"
    return _umap(embeddings_CD), "UMAP"


def _principal_components(embeddings_CD: npt.NDArray[np.float32]) -> Float:
    left, sizes, _ = np.linalg.svd(embeddings_CD - embeddings_CD.mean(axis=0), full_matrices=False)
    plane = np.zeros((len(embeddings_CD), 2))
    plane[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    return plane


def _umap(embeddings_CD: npt.NDArray[np.float32]) -> Float:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        import umap  # seconds of numba compilation, so only when a plane is drawn

        # One job and a fixed state make it repeatable; starting from principal components also works when the
        # neighbour graph falls apart, where the spectral start warns and depends on the eigensolver.
        reducer = umap.UMAP(
            n_neighbors=min(15, len(embeddings_CD) - 1), min_dist=0.3, init="pca", random_state=0, n_jobs=1
        )
        return np.asarray(reducer.fit_transform(embeddings_CD), np.float64)


def _draw_cells(axes: Axes, plane: Float, *, labels: Sequence[str], styles: Mapping[str, tuple[str, str]]) -> None:
    """Scatter the cells, rare labels last so that they are not buried."""
    values = np.asarray(labels, str)
    size = float(np.clip(8000 / len(values), 6, 24))
    for label in sorted(styles, key=lambda label: -np.count_nonzero(values == label)):
        colour, marker = styles[label]
        x, y = plane[values == label].T
        axes.scatter(x, y, s=size, c=colour, marker=marker, linewidths=size / 100, edgecolors="white", alpha=0.9)


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A (colour, marker) for each label, all different for up to sixty of them."""
    return {
        label: (COLOURS[n % len(COLOURS)], MARKERS[n // len(COLOURS) % len(MARKERS)]) for n, label in enumerate(labels)
    }


def _legend_columns(labels: Sequence[str]) -> int:
    return max(1, min(5, 105 // (max(_columns(_shortened(label)) for label in labels) + 6)))


def _columns(text: str) -> int:
    """Width in columns of a terminal: Chinese, Japanese and Korean characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _shortened(text: str, *, limit: int = LABEL_COLUMNS) -> str:
    """Elide the middle of a long text (types differ at both ends), and keep dollars from starting a formula."""
    if _columns(text) > limit:
        half = (limit - 1) // (4 if _columns(text) > len(text) else 2)
        text = f"{text[:half]}…{text[-half:]}"
    return text.replace("$", r"\$")
