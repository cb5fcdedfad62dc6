"""The plots as a reader sees them: there, of the right size, not blank, and showing what they were given."""

import itertools
import warnings

import numpy as np
import pytest
from matplotlib import cbook, image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cytoray.errors import ConfigError, ModelError, TrainingError
from cytoray.evaluation import plots
from cytoray.evaluation.classification import score_classification
from cytoray.evaluation.plots import plot_confusion, plot_embedding, plot_loss
from cytoray.pages import charts

ODD_LABELS = ["CD4⁺ αβ T", "滤泡辅助性T细胞" * 6, "_hidden $x$", "regulatory " * 20]
# Machado et al. 2009, severity 1: what linear RGB looks like without one kind of cone.
COLOUR_BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved, for what cannot be read from pixels."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    )
    return saved


@pytest.fixture
def plain_plane(monkeypatch):
    """Principal components in UMAP's place: the panels are what is looked at, and numba takes its time."""
    monkeypatch.setattr(plots, "_umap", plots._principal_components)


def assert_readable(path, *, width=1200):
    pixels = image.imread(path)
    assert pixels.shape[1] == width
    assert pixels[..., :3].std() > 0.02
    assert [file.name for file in path.parent.iterdir() if file.name.endswith(".tmp")] == []


def drawn(figure):
    """The renderer of the figure as it was saved, to measure texts in its pixels."""
    figure.set_dpi(charts.DPI)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.draw()
    return canvas.get_renderer()


def assert_no_overlap(texts, renderer):
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def assert_inside(figure):
    renderer = drawn(figure)
    for text in (*figure.legends[0].get_texts(), *figure.texts):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0, text.get_text()
        assert box.y0 >= 0, text.get_text()
        assert box.x1 <= figure.get_window_extent().width, text.get_text()


def scattered(axes):
    """The multiset of drawn (x, y, colour, marker size) of a panel, as sorted rows."""
    rows = [
        (*point, *collection.get_facecolor()[0])
        for collection in axes.collections
        for point in collection.get_offsets()
    ]
    return sorted(tuple(float(value) for value in row) for row in rows)


def random_scores(num_labels, *, num_cells=500):
    rng = np.random.default_rng(0)
    labels = [f"cell type number {n}" for n in range(num_labels)]
    truth = rng.choice(labels, num_cells).tolist()
    predicted = [t if rng.random() < 0.7 else str(rng.choice(labels)) for t in truth]
    return score_classification(truth, predicted, labels=labels)


def test_confusion_shows_shares_of_rows_and_their_counts(tmp_path, figures):
    scores = score_classification(["B", "B", "B", "B", "T"], ["B", "B", "B", "T", "T"], labels=["B", "T", "absent"])
    plot_confusion(scores, tmp_path / "confusion.png")

    assert_readable(tmp_path / "confusion.png")
    axes = figures[0].axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "3", (1, 0): "1", (1, 1): "1"}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["B", "T", "absent"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["B (4)", "T (1)", "absent (0)"]


@pytest.mark.parametrize("num_labels", [1, 2, 10, 30, 60])
def test_tick_labels_of_the_confusion_matrix_never_overlap(num_labels, tmp_path, figures):
    plot_confusion(random_scores(num_labels), tmp_path / "confusion.png")

    axes = figures[0].axes[0]
    assert_no_overlap(axes.get_yticklabels(), drawn(figures[0]))
    for tick in axes.get_xticklabels():
        assert tick.get_rotation() in (45, 90)
    # Slanted boxes overlap though the text does not: measured across the slant, the lines have to fit their pitch.
    height_px = axes.get_xticklabels()[0].get_fontsize() * charts.DPI / 72
    pitch_px = axes.get_window_extent().width / num_labels
    assert height_px < pitch_px * (1.0 if num_labels > 15 else np.sqrt(0.5))
    assert axes.get_xticklabels()[0].get_fontsize() >= 8


@pytest.mark.usefixtures("plain_plane")
def test_labels_in_any_script_of_any_length_are_drawn(tmp_path, figures):
    scores = score_classification(ODD_LABELS, ODD_LABELS[::-1], labels=ODD_LABELS)
    plot_confusion(scores, tmp_path / "confusion.png")
    rng = np.random.default_rng(0)
    plot_embedding(rng.normal(size=(20, 4)), ODD_LABELS * 5, tmp_path / "cells.png", title="T-Zellen für 5$ " * 30)

    assert_readable(tmp_path / "confusion.png")
    assert_readable(tmp_path / "cells.png")
    legend = [text.get_text().replace(r"\$", "$") for text in figures[1].legends[0].get_texts()]
    assert {"CD4⁺ αβ T", "_hidden $x$"} < set(legend)
    assert not any(cbook.is_math_text(text.get_text()) for text in figures[1].legends[0].get_texts())
    assert_inside(figures[1])


@pytest.mark.usefixtures("plain_plane")
@pytest.mark.parametrize("length", [4, 14, 20, 26, 32, 60])
def test_legend_stays_inside_the_figure(length, tmp_path, figures):
    labels = [
        f"{n:02d} CD4+ NAIVE T CELL OF THE THYMUS, OF THE BLOOD AND OF THE BONE MARROW"[:length] for n in range(30)
    ]
    plot_embedding(np.random.default_rng(0).normal(size=(30, 4)), labels, tmp_path / "cells.png", title="thirty")
    assert_inside(figures[0])


@pytest.mark.usefixtures("plain_plane")
def test_two_panels_show_the_same_cells_in_the_colours_of_true_and_predicted_labels(tmp_path, figures):
    rng = np.random.default_rng(1)
    labels = [f"type {n}" for n in rng.integers(0, 4, 80)]
    predicted = ["type 0"] * 80
    plot_embedding(rng.normal(size=(80, 6)), labels, tmp_path / "both.png", predicted=predicted, title="cells")
    plot_embedding(rng.normal(size=(80, 6)), labels, tmp_path / "one.png", title="cells")

    assert_readable(tmp_path / "both.png")
    true_panel, predicted_panel = figures[0].axes
    shown, called = scattered(true_panel), scattered(predicted_panel)
    assert [row[:2] for row in shown] == [row[:2] for row in called]
    assert len({row[2:] for row in shown}) == 4
    assert len({row[2:] for row in called}) == 1
    assert len(figures[1].axes) == 1
    assert [text.get_text() for text in figures[1].legends[0].get_texts()] == ["type 0", "type 1", "type 2", "type 3"]


def test_umap_separates_planted_types_and_is_repeatable(tmp_path, figures):
    rng = np.random.default_rng(2)
    types = rng.integers(0, 3, 90)
    embeddings = (10 * np.eye(8)[types] + rng.normal(size=(90, 8))).astype(np.float32)
    labels = [f"type {n}" for n in types]
    for name in ("first.png", "second.png"):
        plot_embedding(embeddings, labels, tmp_path / name, title="planted types")

    assert_readable(tmp_path / "first.png")
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
    assert figures[0].axes[0].get_xlabel() == "UMAP 1"
    groups = [np.asarray(collection.get_offsets()) for collection in figures[0].axes[0].collections]
    centres = [group.mean(axis=0) for group in groups]
    nearest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(centres, 2))
    assert nearest > 2 * max(group.std(axis=0).max() for group in groups)


@pytest.mark.parametrize("num_cells", [1, 2, 9])
def test_a_handful_of_cells_is_drawn_by_principal_components(num_cells, tmp_path, figures):
    embeddings = np.random.default_rng(3).normal(size=(num_cells, 5))
    plot_embedding(embeddings, ["only type"] * num_cells, tmp_path / "cells.png", title="few")

    axes = figures[0].axes[0]
    assert axes.get_xlabel() == "PC 1"
    points = np.vstack([collection.get_offsets() for collection in axes.collections])
    centred = embeddings - embeddings.mean(axis=0)
    variances = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1][:2]
    assert np.allclose((points**2).sum(axis=0), variances, atol=1e-4)


def test_embeddings_that_are_all_the_same_are_still_drawn(tmp_path):
    plot_embedding(np.ones((40, 5)), ["B"] * 20 + ["T"] * 20, tmp_path / "cells.png", title="collapsed")
    assert (tmp_path / "cells.png").exists()


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ModelError, match="not finite"):
        plot_embedding(np.full((12, 3), np.nan), ["B"] * 12, tmp_path / "cells.png", title="diverged")
    assert list(tmp_path.iterdir()) == []


def test_thirty_labels_look_different_and_ten_of_them_to_the_colour_blind_too():
    styles = plots._styles([f"type {n}" for n in range(30)])
    assert len(set(styles.values())) == 30
    for kind, matrix in COLOUR_BLINDNESS.items():
        seen = [lab_colour(colour, np.asarray(matrix)) for colour in charts.COLOURS]
        closest = min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2))
        assert closest > 15, kind  # CIE76; matplotlib's default cycle comes down to 4.6


def lab_colour(colour, matrix):
    """A hex colour as CIE Lab (D65), seen through ``matrix``."""
    rgb = np.array([int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)])
    linear = np.clip(matrix @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz / [0.9505, 1, 1.089]), 7.787 * xyz / [0.9505, 1, 1.089] + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_loss_curves_show_every_loss_where_it_was_recorded(tmp_path, figures):
    history = [
        {"step": 1, "loss": 3.0, "lr": 0.1, "note": "start"},
        {"step": 2, "loss": float("nan"), "gep_loss": 2.0},
        {"step": 3, "loss": 1.0, "gep_loss": None},
        {"step": 4, "epoch": 1},
    ]
    plot_loss(history, tmp_path / "loss.png")

    assert_readable(tmp_path / "loss.png")
    curves = {line.get_label(): np.transpose(line.get_data()).tolist() for line in figures[0].axes[0].lines}
    assert curves == {"loss": [[1, 3.0], [3, 1.0]], "gep_loss": [[2, 2.0]]}


def test_a_run_without_any_loss_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(TrainingError, match="no loss"):
        plot_loss([{"step": 1, "lr": 0.1}], tmp_path / "loss.png")
    assert list(tmp_path.iterdir()) == []


def test_no_label_is_grey():
    for colour in charts.COLOURS:
        channels = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
        assert max(channels) - min(channels) > 50, colour


def test_pictures_are_written_as_png_svg_and_pdf(tmp_path, plain_plane):
    paths = [tmp_path / f"cells.{kind}" for kind in ("png", "svg", "pdf")]
    for _ in range(2):
        before = [path.read_bytes() for path in paths if path.exists()]
        plot_embedding(np.eye(12), ["a", "b"] * 6, paths, title="cells")
    assert [path.read_bytes() for path in paths] == before  # nothing but the figure is in the file
    assert [data[:4] for data in before] == [b"\x89PNG", b"<?xm", b"%PDF"]
    with pytest.raises(ConfigError, match=r"unknown kind of picture '\.gif'.*\.svg"):
        plot_confusion(random_scores(2), tmp_path / "confusion.gif")
    assert not (tmp_path / "confusion.gif").exists()
