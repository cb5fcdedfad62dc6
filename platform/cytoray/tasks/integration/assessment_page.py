"""What the page of an integration's assessment shows beside the table of metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.assessment import Assessment
from cytoray.evaluation.assessment_page import Rows, Section, details_rows, number, png
from cytoray.evaluation.plots import draw_groups
from cytoray.tasks.integration.cells import BatchedCells, sample_batches

DRAWN_CELLS = 2_000
NO_LABEL = "no label"
_CANDIDATES = ("name", "cluster_score", "neighbour_overlap", "total", "bio", "batch", "role")
_LABELS = ("label", "num_cells", "num_batches", "asw", "bras", "kbet", "graph_connectivity")


@dataclass(frozen=True, eq=False)
class Pictured:
    """Cells that are drawn before and after integration."""

    cells: BatchedCells
    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]
    seed: int


def integration_sections(assessment: Assessment, pictured: Pictured) -> list[Section]:
    """Return the sections of the page."""
    details = assessment.details
    sections = [_picture(f"UMAP {when} integration", pictured, when) for when in ("before", "after")]
    sections.append(Section("Candidates", _CANDIDATE_TEXT, _candidate_rows(details["candidates"])))
    if details["per_label"]:
        rows = [{key: _dashed(row[key]) for key in _LABELS} for row in details["per_label"]]
        sections.append(Section("Cell types after integration", rows=details_rows(_LABELS, rows)))
    overlaps = details["neighbour_overlap"]["per_batch"]
    batches = [
        {"batch": name, "num_cells": count, "neighbour_overlap": _dashed(overlaps[name])}
        for name, count in details["batches"].items()
    ]
    text = "Share of each cell's 30 nearest cells of its own batch that are still among the nearest after integration."
    columns = ("batch", "num_cells", "neighbour_overlap")
    sections.append(Section("Batches", text, details_rows(columns, batches)))
    if details["reasons"]:
        reasons = [{"metric": name, "reason": reason} for name, reason in sorted(details["reasons"].items())]
        sections.append(Section("Metrics without a meaning here", rows=details_rows(("metric", "reason"), reasons)))
    return sections


_CANDIDATE_TEXT = (
    "Chosen by the cluster score: the total with clusters as labels, which each batch forms by itself before any "
    "correction and which are matched between batches. Total, bio and batch use the cell types, if there are any, and "
    "were computed after the choice, on at most 2,000 cells."
)


def _candidate_rows(candidates: list[dict[str, object]]) -> Rows:
    rows = []
    for each in candidates:
        role = "product" if each["chosen"] else "baseline" if each["is_baseline"] else ""
        rows.append({**{key: _dashed(each.get(key)) for key in _CANDIDATES}, "role": role})
    return details_rows(_CANDIDATES, rows)


def _dashed(value: object) -> object:
    return number(None) if value is None else value


def _picture(title: str, pictured: Pictured, when: str) -> Section:
    cells = pictured.cells
    rows = sample_batches(cells.batches, DRAWN_CELLS, seed=pictured.seed)
    groups = {"batch": [cells.batches[row] for row in rows]}
    if cells.labels is not None:
        groups["cell type"] = [cells.labels[row] or NO_LABEL for row in rows]
    points = (pictured.before if when == "before" else pictured.after)[rows]
    return Section(title, image=png(draw_groups(points, groups)))
