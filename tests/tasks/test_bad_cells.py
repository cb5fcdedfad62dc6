"""Cells that cannot be assessed are refused before anything is fitted, with a remedy; doubtful ones get a warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from planted_batches import planted, write
from planted_proteins import build
from scipy import sparse
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import CorpusError
from cytoray.tasks.annotation import assessment as annotation
from cytoray.tasks.annotation.labelled import few_scored_warning, label_warnings
from cytoray.tasks.integration import choosing
from cytoray.tasks.mapping import assessment as mapping
from cytoray.tasks.mapping import building
from cytoray.tasks.mapping.cells import read_reference
from cytoray.tasks.multiomic import assessment as multiomic
from cytoray.tokens.vocabulary import GeneVocabulary

Change = Callable[[anndata.AnnData], anndata.AnnData]


@pytest.fixture(autouse=True)
def nothing_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at the first fit of any task."""

    def fit(*arguments: Any, **options: Any) -> None:
        raise AssertionError("these cells should have been refused before anything is fitted")

    monkeypatch.setattr(annotation, "fit_annotator", fit)
    monkeypatch.setattr(choosing._Judge, "candidate", fit)
    monkeypatch.setattr(mapping, "fit_mapper", fit)
    monkeypatch.setattr(multiomic, "fit_proteins", fit)


def labelled(labels: Any) -> Change:
    """Return a change of the labels: one for all cells, or a list that is repeated."""

    def change(adata: anndata.AnnData) -> anndata.AnnData:
        values = [labels] if labels is None or isinstance(labels, str) else labels
        adata.obs["cell_type"] = pd.Categorical([values[row % len(values)] for row in range(adata.n_obs)])
        return adata

    return change


def one_batch(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["batch"] = "only"
    return adata


def empty(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    return adata


def negative(adata: anndata.AnnData) -> anndata.AnnData:
    adata.X = sparse.csr_matrix(adata.X.toarray() - 1)
    return adata


def not_finite(adata: anndata.AnnData) -> anndata.AnnData:
    values = adata.X.toarray()
    values[3, 5] = np.nan
    adata.X = sparse.csr_matrix(values)
    return adata


def foreign(adata: anndata.AnnData) -> anndata.AnnData:
    adata.var_names = [f"zz{place}" for place in range(adata.n_vars)]
    return adata


def other_genes(adata: anndata.AnnData) -> anndata.AnnData:
    adata.var_names = list(GeneVocabulary.load_default().tokens[5000 : 5000 + adata.n_vars])
    return adata


def two_cells(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[[0, 1]].copy()


def one_gene(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[:, :1].copy()


def same(adata: anndata.AnnData) -> anndata.AnnData:
    return adata


BATCH = {"batch_key": "batch"}
TRANSFER = {"protocol": "transfer"}
CASES: list[tuple[str, Change, Change | None, dict[str, str], str]] = [  # task, data, query, settings, problem
    ("annotation", labelled("T"), None, {}, "all 90 cells have the label 'T'"),
    ("annotation", labelled([f"t{row}" for row in range(90)]), None, {}, "90 cells have 90 labels"),
    ("annotation", labelled(None), None, {}, "no cell has a label in 'cell_type'"),
    ("annotation", labelled("nan"), None, {}, "every label is missing"),
    ("annotation", one_batch, None, BATCH, "all 90 cells are of the batch 'only'.*--batch-key"),
    ("annotation", two_cells, None, {}, "2 cells have 2 labels|all 2 cells"),
    ("annotation", empty, None, {}, "no cell has"),
    ("annotation", negative, None, {}, "negative"),
    ("annotation", not_finite, None, {}, "NaN or infinite"),
    ("annotation", foreign, None, {}, "0 of 240 genes are in the vocabulary"),
    ("annotation", same, other_genes, TRANSFER, "share no gene"),
    ("annotation", same, labelled("erythrocyte"), TRANSFER, "share no label.*--label-map"),
    ("annotation", same, labelled("nan"), TRANSFER, "every label is missing"),
    ("integration", one_batch, None, {}, "all 90 cells are of the batch 'only'"),
    ("integration", two_cells, None, {}, "of the batch|too few to integrate"),
    ("integration", one_gene, None, {}, "1 expressed genes are too few"),
    ("integration", empty, None, {}, "no cell has a batch in 'batch' and a count"),
    ("integration", negative, None, {}, "is -1"),
    ("integration", not_finite, None, {}, "is nan"),
    ("mapping", labelled(None), same, {}, "no cell has a label in 'cell_type'"),
    ("mapping", labelled("nan"), same, {}, "0 cells have a cell type in 'cell_type'"),
    ("mapping", two_cells, same, {}, "a reference needs 10"),
    ("mapping", negative, same, {}, "negative"),
    ("mapping", foreign, same, {}, "0 of 240 genes are in the vocabulary"),
    ("mapping", same, labelled("nan"), {}, "no cell has a label to score"),
    ("mapping", same, labelled(None), {}, "no cell has a label to score"),
    ("mapping", same, labelled("erythrocyte"), {}, "share no label.*--label-map"),
    ("mapping", same, empty, {}, "no cell with a label of the reference has a count"),
    ("mapping", same, other_genes, {}, "share 0 genes"),
    ("mapping", one_gene, same, {}, "share 1 genes"),
    ("mapping", same, one_gene, {}, "share 1 genes"),
    ("multiomic", two_cells, None, {}, "2 cells with proteins; at least 20"),
    ("multiomic", empty, None, {}, "no cell has a count of RNA"),
    ("multiomic", negative, None, {}, "is -1"),
    ("multiomic", not_finite, None, {}, "is nan"),
    ("multiomic", one_batch, None, BATCH, "all cells are of batch 'only'.*--batch-key"),
    ("multiomic", same, two_cells, TRANSFER, "2 cells with proteins; at least 20"),
    ("multiomic", same, foreign, TRANSFER, "share no gene"),
]


@pytest.mark.parametrize(("task", "data", "query", "settings", "problem"), CASES)
def test_unusable_cells_are_refused_before_anything_is_fitted(
    task: str, data: Change, query: Change | None, settings: dict[str, str], problem: str, tmp_path: Path
) -> None:
    draw = build if task == "multiomic" else planted
    files = {"data": str(write(tmp_path, data(draw(80) if task == "multiomic" else planted((50, 40)))))}
    if query is not None:
        cells = draw(40, seed=3) if task == "multiomic" else planted((40,), seed=3)
        files["query"] = str(write(tmp_path, query(cells), "query.h5ad"))
    out = tmp_path / "out"
    with pytest.raises(CorpusError, match=f"(?s){problem}") as caught:
        cytoray.assess(task, **files, **settings, out=str(out))
    assert caught.value.remedy
    assert not list(out.iterdir()), "nothing half-written"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (two_cells, "a reference needs 10"),
        (labelled(None), "no cell has a label in 'cell_type'"),
        (labelled("nan"), "0 cells have a cell type"),
        (negative, "negative"),
        (foreign, "0 of 240 genes are in the vocabulary"),
        (one_gene, "express 1 known genes; a reference needs 10"),
    ],
)
def test_unusable_references_are_refused(
    data: Change, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "place_in_plane", None)
    monkeypatch.setattr(building, "build_index", None)
    file = write(tmp_path, data(planted((50, 40))))
    words = ["reference", "build", "--data", str(file), "--out", str(tmp_path / "reference"), "--json"]
    with pytest.raises(CorpusError, match=f"(?s){problem}"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert not (tmp_path / "reference").exists()


def test_doubtful_labels_are_named() -> None:
    assert label_warnings(["B", "T"] * 9, ["one", "two"] * 9) == [
        "each label occurs in one batch only: labels and batches cannot be separated"
    ]
    assert label_warnings(["B", "T"] * 9, ["one"] * 18) == []
    assert label_warnings(["B", "B", "rare"]) == ["label 'rare' has one cell"]
    assert label_warnings([f"t{row}" for row in range(9)]) == ["9 of 9 labels have one cell, such as 't0'"]
    assert label_warnings(["B"] * 3) == ["all 3 cells have the label 'B': there is nothing to tell apart"]
    assert few_scored_warning(20) == []
    assert few_scored_warning(2) == ["only 2 cells are scored: figures of fewer than 20 cells are not reliable"]


@pytest.mark.parametrize(
    ("labels", "batch_key", "expected"),
    [
        ("T", None, "all 90 cells have the label 'T'"),
        (["lonely", *["B", "T"] * 45], None, "label 'lonely' has one cell"),
        (["B", "T", "nan"], None, "30 cells labelled 'nan' were left out"),
        (["B", "T"], "cell_type", "labels and batches cannot be separated"),
    ],
)
def test_a_reference_of_doubtful_labels_says_so(
    labels: Any, batch_key: str | None, expected: str, tmp_path: Path
) -> None:
    file = write(tmp_path, labelled(labels)(planted((50, 40))))
    vocabulary = GeneVocabulary.load_default()
    _, warnings = read_reference([str(file)], "cell_type", batch_key=batch_key, vocabulary=vocabulary)
    assert any(expected in warning for warning in warnings), json.dumps(warnings)
