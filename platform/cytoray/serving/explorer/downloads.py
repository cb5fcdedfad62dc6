"""Answers of a session as files that a scientist takes along: CSV, and the h5ad with its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from cytoray.drafts import draft_of
from cytoray.serving.explorer.answering import EMBEDDED
from cytoray.serving.explorer.cells import StoredCells
from cytoray.serving.explorer.columns import read_column, read_layout
from cytoray.serving.explorer.sessions import Column, Session

CSV, ANNOTATED = "answers.csv", "annotated.h5ad"
PREFIX = "cytoray_"
OWN_GROUPS = ("obs", "quality")  # columns that come from the file, not from the model


def answer_columns(session: Session) -> list[Column]:
    """Return the columns that the model answered, in the order of the page."""
    return [column for column in session.state.columns if column.group not in OWN_GROUPS]


def title_of(column: Column) -> str:
    """Name a column of answers outside the page: label, probabilities.B, map.label."""
    parts = [] if column.group in ("annotate", EMBEDDED) else [column.group]
    return ".".join([*parts, *filter(None, [column.part_of]), column.name])


def write_csv(session: Session) -> Path:
    """Write the answers to all cells and their places, a row per cell; returns the file."""
    cells = StoredCells.open(session.folder / "cells")
    columns: dict[str, Any] = {"cell": pa.array(cells.names)}
    columns |= {title_of(column): read_column(session, column) for column in answer_columns(session)}
    for name in session.state.layouts:
        places = read_layout(session, name)
        columns |= {f"{name}_{axis + 1}": pa.array(places[:, axis]) for axis in (0, 1)}
    path = session.folder / CSV
    with draft_of(path) as draft:
        pyarrow.csv.write_csv(pa.table(columns), draft)
    return path
