"""Write a run card: its JSON, a plot of the loss and a page. Numbers become text here, not in the template."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cytoray import storage
from cytoray.pages.frame import load_template
from cytoray.training.card import HTML_NAME, JSON_NAME, PLOT_NAME, RunCard
from cytoray.training.card_plots import (
    CONSTANT,
    TOTAL,
    curve,
    loss_names,
    plot_figures,
    plot_loss_png,
    plot_loss_svg,
)
from cytoray.training.card_text import (
    NOT_MEASURED,
    Comparison,
    figure_rows,
    is_higher_better,
    metric_text,
    metric_words,
    number_text,
    percent_text,
    scaled_text,
    seconds_text,
)

MOST_EVENTS = 100  # on the page; all of them are in card.json
MOST_CHECKPOINTS = 12
_KIND_WORDS = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}
_WAITS = {"data_wait_share": "waiting for data", "checkpoint_stall_share": "stopped by a checkpoint"}
# Title, label of the axis, figures by name.
_PLOTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Learning rate", "learning rate", {"learning_rate": "learning rate"}),
    ("Gradient norm", "norm before clipping", {"gradient_norm": "gradient norm"}),
    ("Throughput", "cells per second", {"cells_per_s": "cells"}),
    ("Waits", "share of a step's time", _WAITS),
)


def write_card(card: RunCard, folder: Path) -> dict[str, Path]:
    """Write ``card.html`` (one file, nothing fetched from elsewhere), ``loss.png`` and ``card.json`` into ``folder``.

    All are rendered before any is written, and each is written atomically. Returns the paths by name.
    """
    # The page is written last: if it exists, the other files do too.
    files = {
        JSON_NAME: (json.dumps(card.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        PLOT_NAME: plot_loss_png(card.history, card.validation),
        HTML_NAME: render_page(card).encode(),
    }
    for name, data in files.items():
        storage.write_bytes(str(folder / name), data)
    return {name: folder / name for name in files}


def render_page(card: RunCard) -> str:
    """Render the card as one HTML page."""
    comparison = Comparison.of(card.scores)
    return load_template("cytoray.training", "card.html.j2").render(
        card=card,
        kind=_kind(card),
        summary=_summary(card, comparison),
        tiles=_tiles(card, comparison),
        scores=_scores(card.scores, comparison),
        loss_plot=plot_loss_svg(card.history, card.validation),
        plots=_plots(card.history),
        checkpoints=_checkpoints(card.validation),
        stability=_stability(card.stability),
        figures=figure_rows(card.history),
        memory=_memory(card.history),
        hardware=_hardware(card.hardware),
        events=card.events[:MOST_EVENTS],
        num_hidden=max(0, len(card.events) - MOST_EVENTS),
        is_dirty=any(value.endswith("-dirty") for value in card.code.values()),
        not_measured=NOT_MEASURED,
    )


def _kind(card: RunCard) -> str:
    return _KIND_WORDS.get(card.kind, card.kind)


def _summary(card: RunCard, comparison: Comparison | None) -> str:
    """Describe the run in a few sentences."""
    amounts = [
        number_text(card.totals[name], _unit(name, card.totals[name]))
        for name in ("steps", "cells", "tokens")
        if name in card.totals
    ]
    took = f" in {seconds_text(card.totals['seconds'])}" if "seconds" in card.totals else ""
    workers = f" on {len(card.hardware)} worker{'s' if len(card.hardware) != 1 else ''}" if card.hardware else ""
    sentences = [f"{_kind(card)} run {card.run}: {', '.join(amounts) or f'steps {NOT_MEASURED}'}{took}{workers}."]
    losses = curve(card.history, TOTAL)[1]
    if len(losses) > 1:
        sentences.append(f"The loss went from {metric_text(losses[0])} to {metric_text(losses[-1])}.")
    elif losses:
        sentences.append(f"The loss was {metric_text(losses[0])}.")
    sentences.append(comparison.words if comparison is not None else _validation_words(card.validation))
    return " ".join(sentences)


def _unit(name: str, value: float) -> str:
    return name.removesuffix("s") if value == 1 else name


def _validation_words(validation: Sequence[Mapping[str, float]]) -> str:
    """Describe the last validation, for runs without a final table."""
    names = [name for name in loss_names(validation) if name != CONSTANT]
    values = curve(validation, names[0]) if names else ([], [])
    if not values[0]:
        return "It was not measured on held-out cells."
    constants = dict(zip(*curve(validation, CONSTANT), strict=True))
    step, value = values[0][-1], values[1][-1]
    constant = constants.get(step, 0.0)
    beside = f", {value / constant:.3f} times that of the mean bin ({metric_text(constant)})" if constant else ""
    words = f"{metric_words(names[0])} loss on held-out cells was {metric_text(value)}{beside}"
    return f"At step {number_text(step)} its {words}."


def _tiles(card: RunCard, comparison: Comparison | None) -> list[tuple[str, str, str]]:
    """The figures at the top: value, name and a remark."""
    totals = card.totals
    tiles: list[tuple[str, str, str]] = [
        (_large(totals.get(name)), name, "") for name in ("steps", "cells", "tokens") if name in totals
    ]
    if "seconds" in totals:
        tiles.append((seconds_text(totals["seconds"]), "of training", ""))
    if losses := curve(card.history, TOTAL)[1]:
        tiles.append((metric_text(losses[-1]), "last loss", "of a step"))
    if comparison is not None:
        remark = "more is better" if is_higher_better(comparison.metric) else "less is better"
        tiles.append((comparison.ratio_text(comparison.model), "of the best baseline", f"held out; {remark}"))
    return tiles


def _large(value: float | None) -> str:
    if value is None or not math.isfinite(value) or abs(value) < 1e6:
        return number_text(value)
    return scaled_text(value, "").rstrip()


def _scores(scores: Mapping[str, Mapping[str, float]], comparison: Comparison | None) -> dict[str, Any]:
    """Return columns and rows of the final table."""
    metrics = list(dict.fromkeys(name for row in scores.values() for name in row))
    rated = comparison.metric if comparison is not None else None
    return {
        "columns": [metric_words(name.removeprefix("num_")) for name in metrics],
        "ratio_of": metric_words(rated) if rated is not None else "",
        "remark": "" if rated is None else "more is better" if is_higher_better(rated) else "less is better",
        "rows": [
            {
                "name": name,
                "is_model": place == 0,
                "is_best_baseline": comparison is not None and name == comparison.baseline_name,
                "values": [metric_text(row.get(metric), metric) for metric in metrics],
                "ratio": comparison.ratio_text(row.get(comparison.metric)) if comparison is not None else "",
            }
            for place, (name, row) in enumerate(scores.items())
        ],
    }


def _plots(history: Sequence[Mapping[str, float]]) -> list[tuple[str, str]]:
    """Title and image of each small plot that has data."""
    drawn = [(title, plot_figures(history, names, label, percent=names is _WAITS)) for title, label, names in _PLOTS]
    return [(title, image) for title, image in drawn if image is not None]


def _stability(rows: Mapping[str, Mapping[str, float | int | None]]) -> list[tuple[str, str, str, str]]:
    """Change, share of labels kept, median cosine of embeddings and number of cells, as text."""
    return [
        (
            change,
            NOT_MEASURED if row["labels_kept"] is None else percent_text(row["labels_kept"]),
            metric_text(row["median_cosine"]),
            number_text(row["num_cells"]),
        )
        for change, row in rows.items()
    ]


def _checkpoints(validation: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return columns and rows of the table of checkpoints; the best by the first column is marked."""
    names = list(dict.fromkeys(name for point in validation for name in point if name != "step"))
    values = curve(validation, names[0])[1] if names else []
    best = min(values, default=None)
    rows = [
        {
            "step": number_text(point.get("step")),
            "values": [metric_text(point.get(name), name) for name in names],
            "is_best": best is not None and point.get(names[0]) == best,
        }
        for point in validation
    ]
    hidden = max(0, len(rows) - MOST_CHECKPOINTS)
    shown = [row for place, row in enumerate(rows) if place >= hidden or row["is_best"]]
    return {"columns": [metric_words(name) for name in names], "rows": shown, "num_hidden": len(rows) - len(shown)}


def _memory(history: Sequence[Mapping[str, float]]) -> str:
    values = curve(history, "memory_bytes")[1]
    return scaled_text(max(values), "B") if values else NOT_MEASURED


def _hardware(workers: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Group identical workers into one row with their count."""
    columns = list(dict.fromkeys(name for worker in workers for name in worker))
    counts = Counter(tuple(worker.get(name, "-") for name in columns) for worker in workers)
    return {"columns": columns, "rows": [(count, values) for values, count in counts.items()]}
