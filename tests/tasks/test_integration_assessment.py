"""`cytoray assess integration` on small files with planted types and batches: what is reported, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
from planted_batches import TYPES, planted, write
from scipy import sparse
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.errors import CorpusError
from cytoray.tasks.integration import judging
from cytoray.tasks.integration.reading import read_batched
from cytoray.tasks.integration.stress import stress_batch


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "NUM_DRAWS", 10)


def assess(*arguments: object) -> dict[str, Any]:
    """Run the command and return its JSON."""
    result = CliRunner().invoke(app, ["assess", "integration", *map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_labels_score_what_was_chosen_without_them(tmp_path: Path) -> None:
    adata = planted()
    labels = adata.obs["cell_type"].astype(object)
    labels.iloc[:6] = [np.nan, "unassigned", np.nan, "nan", np.nan, np.nan]
    adata.obs["cell_type"] = labels
    file = write(tmp_path, adata)
    scored = assess("--data", file, "--label-key", "cell_type", "--out", tmp_path / "a")
    assert next(iter(scored["metrics"])) == "total"
    total = scored["metrics"]["total"]
    assert total["floor"] < total["product"]
    assert total["baseline"] - 0.01 <= total["product"]
    assert total["interval"][0] <= total["product"] - total["baseline"] <= total["interval"][1]
    assert total["verdict"] in ("win", "tie", "loss")
    assert scored["metrics"]["ilisi"]["floor"] < scored["metrics"]["ilisi"]["product"]
    assert {"nmi", "ari", "asw_label", "asw_batch", "graph_connectivity", "kbet", "clisi", "pcr"} < set(
        scored["metrics"]
    )
    assert "6 cells without a cell type were integrated but not scored" in scored["warnings"]
    assert [row["name"] for row in scored["details"]["candidates"] if row["chosen"]] == [*scored["chosen"]]
    page = (tmp_path / "a" / "report.html").read_text()
    assert "UMAP after integration" in page
    assert "CD14 Mono" in page

    without = assess("--data", file, "--out", tmp_path / "b")
    assert without["chosen"] == scored["chosen"], "labels take no part in the choice"
    assert next(iter(without["metrics"])) == "cluster_score"
    assert without["metrics"]["total"]["product"] is None
    assert without["metrics"]["pcr"]["product"] > 0.5


def test_batches_that_are_cell_types_are_named(tmp_path: Path) -> None:
    adata = planted((90, 90), strength=0.0)
    adata = adata[adata.obs["cell_type"].isin(["B", "CD14 Mono"])].copy()
    adata.obs["batch"] = ["one" if kind == "B" else "two" for kind in adata.obs["cell_type"]]
    found = assess("--data", write(tmp_path, adata), "--label-key", "cell_type", "--out", tmp_path / "out")
    assert any("confounded" in warning for warning in found["warnings"])


def test_every_stress_changes_the_largest_batch_only(tmp_path: Path) -> None:
    cells = read_batched(str(write(tmp_path, planted())), "batch", label_key="cell_type")
    largest = np.array(cells.batches) == "batch 0"
    for stress in ("thinned", "panel", "missing-type"):
        changed, sentence = stress_batch(cells, stress, seed=0)
        assert "batch 0" in sentence
        own = np.array(changed.batches) == "batch 0"
        assert changed.values[np.flatnonzero(~own)].sum() == cells.values[np.flatnonzero(~largest)].sum()
        share = changed.values[np.flatnonzero(own)].sum() / cells.values[np.flatnonzero(largest)].sum()
        assert share == pytest.approx({"thinned": 0.25, "panel": 0.7, "missing-type": 0.6}[stress], abs=0.15)
        if stress == "missing-type":
            assert set(np.array(changed.labels)[own]) == set(TYPES) - {"B"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda adata: adata[adata.obs["batch"] == "batch 0"], "are of the batch 'batch 0'"),
        (lambda adata: adata[[0, -1]], "2 cells are too few"),
        (lambda adata: adata[:, :1], "1 expressed genes are too few"),
        (lambda adata: adata[:, []], "no cell has a batch|holds no genes|no genes"),
    ],
)
def test_unusable_cells_are_refused(tmp_path: Path, change: Any, problem: str) -> None:
    adata = change(planted()).copy()
    file = write(tmp_path, anndata.AnnData(adata.X, obs=adata.obs, var=adata.var))
    with pytest.raises(CorpusError, match=problem):
        assess("--data", file, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()


def test_missing_columns_and_batches(tmp_path: Path) -> None:
    adata = planted((40, 40))
    adata.obs["batch"] = [None if n < 5 else "nan" if n < 8 else name for n, name in enumerate(adata.obs["batch"])]
    cells = read_batched(str(write(tmp_path, adata)), "batch")
    assert (len(cells.batches), cells.num_left_out) == (72, 8)
    with pytest.raises(CorpusError, match="plate"):
        read_batched(str(tmp_path / "cells.h5ad"), "plate")


def test_values_that_are_no_expression_are_named(tmp_path: Path) -> None:
    adata = planted((40, 40))
    values = adata.X.toarray()
    values[3, 5] = -1.5
    adata.X = sparse.csr_matrix(values)
    with pytest.raises(CorpusError, match=r"'c0-3'.*-1\.5"):
        read_batched(str(write(tmp_path, adata)), "batch")


def test_one_label_and_log_normalised_expression(tmp_path: Path) -> None:
    adata = planted((60, 12, 5))
    adata.obs["cell_type"] = "T"
    values = adata.X.toarray()
    adata.X = sparse.csr_matrix(np.log1p(1e4 * values / values.sum(axis=1, keepdims=True)))
    found = assess("--data", write(tmp_path, adata), "--label-key", "cell_type", "--out", tmp_path / "out")
    assert next(iter(found["metrics"])) == "cluster_score"
    assert found["metrics"]["nmi"]["product"] is None
    assert any("all scored cells have the label 'T'" in warning for warning in found["warnings"])
    assert any("2 of 3 batches have fewer than 30 cells" in warning for warning in found["warnings"])
    assert found["details"]["reasons"]["nmi_kmeans"] == "all cells have one label"
