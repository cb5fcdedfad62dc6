"""The page of an assessment: every number becomes text here, so that it reads the same on screen and on paper."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from cytoray.evaluation.assessment import COLUMNS, Assessment, MetricRow
from cytoray.pages.charts import encode_figure
from cytoray.pages.frame import load_template

Rows = Sequence[Sequence[str]]  # the first row names the columns
ERRORS = frozenset({"calibration_error", "negative_log_likelihood", "brier", "rmse", "wmse", "mae"})  # less is better
LEGEND = (
    "floor: no learning; baseline: the tuned simple method; model: the transformer alone; product: the answer of "
    "cytoray; ceiling: the best that the data allow, if it is known. The difference is product minus baseline on the "
    "same cells, a 90 % bootstrap interval: win if all of it is above 0, loss if below, otherwise tie."
)
TITLES = {
    "multiomic": "Proteins predicted from RNA",
    "networks": "Gene networks",
    "perturbation": "Response to perturbations",
}
WORDS = {
    "macro_f1": "macro F1", "unseen_auroc": "AUROC of unseen types", "positive_auroc": "AUROC of positive cells",
    "avg_bio": "AvgBIO", "avg_batch": "AvgBATCH", "total": "Total", "bras": "BRAS", "ilisi": "iLISI", "clisi": "cLISI",
    "kbet": "kBET", "pcr": "PCR", "nmi": "NMI", "ari": "ARI",
    "asw_label": "ASW of labels", "asw_batch": "ASW of batches",
    "nmi_kmeans": "NMI of k-means", "ari_kmeans": "ARI of k-means", "pearson": "Pearson", "rmse": "RMSE",
    "within_type_pearson": "Pearson within types", "worst_protein_pearson": "Pearson of the worst protein",
    "factor_auroc": "AUROC of a factor's targets (median)",
    "early_precision_ratio": "early precision / random", "precision_ratio": "AUPRC / random",
    "half_overlap": "Jaccard of two halves", "knock_out_auroc": "AUROC of knock-outs",
    "spearman": "Spearman", "wmse": "WMSE", "r2w": "R2W", "pds": "PDS", "pds_cosine": "PDS by cosine", "mae": "MAE",
    "pearson_delta": "Pearson delta", "pearson_delta_pert": "Pearson delta-pert", "spearman_lfc": "Spearman of changes",
    "top20_overlap": "top-20 overlap", "changed_overlap": "overlap of significant genes",
}  # fmt: skip
_NONE = "-"


@dataclass(frozen=True)
class Section:
    """A part of the page: text, a table, a picture (PNG in base64), each of which may be missing."""

    title: str
    text: str = ""
    rows: Rows = ()
    image: str = ""
    is_small: bool = False  # whether the picture is


@dataclass(frozen=True)
class AssessedTask:
    """The result of an assessment, what its page shows of it, and files of the task beside the report."""

    assessment: Assessment
    sections: Sequence[Section]
    files: Mapping[str, bytes] = field(default_factory=dict)


def render_page(assessment: Assessment, sections: Sequence[Section]) -> bytes:
    """Render the page with the sections of its task between the table of metrics and the choices."""
    task = TITLES.get(assessment.task, assessment.task.capitalize())
    page = load_template("cytoray.evaluation", "assessment.html.j2").render(
        title=f"{task} of {assessment.data['uri'].rpartition('/')[2]}",
        summary=_summary(assessment),
        how=f"Split: {assessment.split}. {_contamination(assessment)}",
        metrics=_metric_rows(assessment.metrics),
        legend=LEGEND,
        warnings=assessment.warnings,
        sections=sections,
        why=assessment.why,
        data=_data_rows(assessment),
    )
    return page.encode()


def png(figure: Figure) -> str:
    """Return a figure as PNG in base64."""
    return base64.b64encode(encode_figure(figure, "png")).decode()


def number(value: float | None) -> str:
    """Format a ratio or score for a table."""
    return _NONE if value is None else f"{value:.3f}"


def _summary(assessment: Assessment) -> str:
    """Describe the result by the first metric in a sentence."""
    name, row = next(iter(assessment.metrics.items()))
    if row.product is None or row.baseline is None or row.interval is None:
        return f"{_words(name)}: {number(row.product)}."
    low, high = row.interval.low, row.interval.high
    return (
        f"{_words(name)} {row.product:.3f}, tuned simple method {row.baseline:.3f}: {row.verdict} "
        f"(difference {row.product - row.baseline:+.3f}, 90 % interval {low:+.3f} to {high:+.3f})."
    )


def _contamination(assessment: Assessment) -> str:
    if assessment.model is None:
        return assessment.model_note or "No transformer was used."
    note = f"{assessment.model_note} " if assessment.model_note else ""
    if assessment.contamination is None:
        return f"{note}Whether the model was pretrained on these cells is not known."
    return f"{note}{100 * assessment.contamination:.1f} % of the scored cells are in the model's pretraining corpus."


def _metric_rows(metrics: Mapping[str, MetricRow]) -> Rows:
    rows = [["metric", *COLUMNS, "difference", "verdict"]]
    for name, row in metrics.items():
        interval = _NONE
        if row.interval is not None:
            interval = f"{row.interval.low:+.3f} to {row.interval.high:+.3f}"
        words = _words(name) + (" (lower is better)" if name in ERRORS else "")
        rows.append([words, *(number(getattr(row, column)) for column in COLUMNS), interval, row.verdict or _NONE])
    return rows


def _data_rows(assessment: Assessment) -> Rows:
    rows = [["", "URI", "cells", "SHA-256"]]
    sources = {"data": assessment.data} | ({"query": assessment.data["query"]} if "query" in assessment.data else {})
    for name, source in sources.items():
        rows.append([name, source["uri"], f"{source['num_cells']:,}", source["digest"][:16]])
    if assessment.model is not None:
        rows.append(["model", assessment.model, _NONE, _NONE])
    return rows


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def details_rows(columns: Sequence[str], table: Sequence[Mapping[str, Any]]) -> Rows:
    """Turn dictionaries into rows of text, with the columns named."""
    header = [column.replace("_", " ") for column in columns]
    return [header, *([_text(row[column]) for column in columns] for row in table)]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
