"""Answers of a mapping as JSON, parquet or h5ad, and their page of pictures."""

# C cells of the query

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from scipy import sparse

from cytoray import storage
from cytoray.errors import ConfigError
from cytoray.tasks.mapping.mapper import UNSEEN_P
from cytoray.tasks.mapping.reference import Reference

SUFFIXES = (".json", ".parquet", ".h5ad")
OBS = ("label", "probability", "status", "unseen_p", "mapping_percentile")


def check_out(out: str) -> str:
    """Return the kind of file that ``out`` names; raises ConfigError for another one."""
    suffix = next((suffix for suffix in SUFFIXES if out.endswith(suffix)), None)
    if suffix is None:
        raise ConfigError(f"{out}: unknown kind of file.", remedy=f"Use {', '.join(SUFFIXES)}.")
    return suffix


def write_answers(out: str, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Write the answers to a path or s3:// URI, whole or not at all, in the form of its suffix."""
    kind = check_out(out)
    with tempfile.TemporaryDirectory(prefix="cytoray-map-") as scratch:
        path = Path(scratch) / f"answers{kind}"
        if kind == ".json":
            path.write_text(json.dumps({**about, "cells": rows}, ensure_ascii=False, allow_nan=False) + "\n")
        elif kind == ".parquet":
            table = pa.Table.from_pylist(rows).replace_schema_metadata({"cytoray_map": json.dumps(about)})
            pq.write_table(table, path)
        else:
            _write_h5ad(path, rows, about)
        storage.write_file(out, path)


def _write_h5ad(path: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> None:
    """Cells in obs, places in obsm, the whole answers as JSON in uns, no expression."""
    index = [str(row["cell_id"]) for row in rows]
    obs = pd.DataFrame({column: [row[column] for row in rows] for column in OBS}, index=index)
    for column in ("probability", "unseen_p", "mapping_percentile"):
        obs[column] = obs[column].astype(float)
    for column in ("label", "status"):
        obs[column] = obs[column].astype("category")
    adata = anndata.AnnData(sparse.csr_matrix((len(rows), 0), dtype=np.float32), obs=obs)
    adata.obsm["X_reference_umap"] = np.array([[row["x"], row["y"]] for row in rows], float).reshape(-1, 2)
    details = [{key: row[key] for key in ("candidates", "set", "neighbours")} for row in rows]
    adata.uns["cytoray_map"] = {"about": json.dumps(about), "answers": json.dumps(details)}
    adata.write_h5ad(path)


def summary_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the numbers of cells by label and by status, commonest first."""
    labels = Counter(row["label"] for row in rows if row["label"] is not None)
    statuses = Counter(row["status"] or "without an answer" for row in rows)
    return [
        "; ".join(f"{count:,} {name}" for name, count in statuses.most_common()),
        *(f"{name}: {count:,}" for name, count in labels.most_common()),
    ]


def draw_map(reference: Reference, rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the map of a reference that has one in grey and the cells of the query upon it, by label."""
    from cytoray.evaluation.plots import MARKERS
    from cytoray.pages.charts import COLOURS

    figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(reference.plane[:, 0], reference.plane[:, 1], s=5, c="#d5dae0", linewidths=0, label="reference")
    placed = [(row["label"], row["x"], row["y"]) for row in rows if row["x"] is not None]
    for number, label in enumerate(sorted({label for label, _, _ in placed})):
        own = np.array([(x, y) for name, x, y in placed if name == label])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        axes.scatter(own[:, 0], own[:, 1], s=7, c=colour, marker=marker, linewidths=0, label=label.replace("$", r"\$"))
    axes.set(xlabel="reference UMAP 1", ylabel="reference UMAP 2", xticks=[], yticks=[])
    figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False, markerscale=2)
    return figure


def draw_confidence(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the probability of the label, by label, and the p-value for an unseen type."""
    answered = [row for row in rows if row["label"] is not None]
    labels = sorted({row["label"] for row in answered})
    figure = Figure(figsize=(8.0, 3.2 + 0.18 * len(labels)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.boxplot(
        [[row["probability"] for row in answered if row["label"] == label] for label in labels],
        orientation="horizontal",
        tick_labels=[label.replace("$", r"\$") for label in labels],
        flierprops={"markersize": 2},
    )
    left.set(xlabel="probability of the label", xlim=(0, 1.02))
    right.hist([row["unseen_p"] for row in answered], bins=40, range=(0, 1), color="#3f90da")
    right.axvline(UNSEEN_P, color="#bd1f01", linewidth=1)
    right.set(xlabel="p-value for an unseen type", ylabel="cells")
    return figure
