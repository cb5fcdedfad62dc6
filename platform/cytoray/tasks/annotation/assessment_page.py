"""What the page of an annotation's assessment shows beside the table of metrics."""

from __future__ import annotations

from typing import Any

import numpy as np

from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import Section, details_rows, number, png
from cytoray.evaluation.classification import score_confusion
from cytoray.evaluation.plots import draw_confusion, draw_reliability

LABEL_COLUMNS = ("label", "precision", "recall", "f1", "num_true", "num_predicted")


def annotation_sections(assessment: Assessment) -> list[Section]:
    """Return the sections that this assessment has something to show in."""
    details = assessment.details
    if "left_out" in details:
        rows = details_rows(("left_out", "num_cells", "distance", "doubt"), details["left_out"])
        text = (
            "Area under the ROC curve of telling a type that was left out of training from the others: by the distance "
            "to the training cells of the predicted type, and by the simple method's doubt (1 - its probability)."
        )
        return [Section("Types left out", text, rows)]
    scores = score_confusion(np.array(details["confusion"], np.int64), tuple(details["labels"]))
    sets = details["prediction_sets"]
    coverage = (
        f"Sets that are to hold the true type of {100 * sets['level']:.0f} % of the cells hold it for "
        f"{100 * sets['coverage']:.1f} %, with {sets['mean_size']:.2f} types on average."
    )
    sections = [Section("Types", rows=details_rows(LABEL_COLUMNS, details["per_label"]))]
    sections.append(Section("Confusion", image=png(draw_confusion(scores))))
    reliability = details["reliability"]
    picture = png(draw_reliability(reliability["confidence"], reliability["accuracy"]))
    sections.append(Section("Reliability of the probabilities", coverage, image=picture, is_small=True))
    if "adapted" in details:
        sections.append(_adapted(details["adapted"]))
    if "label_names" in details:
        sections.append(Section("Names of the labels", rows=_label_rows(details["label_names"])))
    columns = ("name", "num_train", "num_test", "product", "baseline", "chosen")
    sections.append(Section("Splits", "Macro F1 of each split.", details_rows(columns, details["splits"])))
    return sections


def _adapted(adapted: dict[str, Any]) -> Section:
    row = adapted["macro_f1"]
    text = (
        "Answers adapted to the query as a whole (its label frequencies and neighbourhoods), which look at all query "
        f"cells without their labels: macro F1 {number(row['product'])} against {number(row['baseline'])}, "
        f"{row['verdict']} (difference {row['interval'][0]:+.3f} to {row['interval'][1]:+.3f}); accuracy "
        f"{number(adapted['accuracy'])}. Given only if asked for."
    )
    return Section("Adapted to the query", text)


def _label_rows(names: dict[str, dict[str, str]]) -> list[list[str]]:
    rows = [["label", "data set", "assessed as"]]
    for side in ("reference", "query"):
        rows += [[label, side, name] for label, name in names[side].items()]
    return rows
