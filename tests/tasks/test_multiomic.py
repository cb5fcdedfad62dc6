"""`cytoray assess multiomic` on small files with planted proteins: what is reported, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem
from planted_proteins import GENES, NUM_CELLS, NUM_GENES, PROTEINS, build, draw_cells
from scipy import sparse
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.errors import CorpusError
from cytoray.tasks.multiomic import assessment, members
from cytoray.tasks.multiomic.paired import centred_log_ratio, protein_word
from cytoray.tasks.multiomic.reading import read_paired

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer folds and smaller networks: the cells are few."""
    monkeypatch.setattr(assessment, "NUM_FOLDS", 3)
    monkeypatch.setattr(members, "NUM_NETWORKS", 1)
    monkeypatch.setattr(members, "LAYERS", (16,))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write an AnnData, changed by a function."""

    def write_changed(change: Callable[[anndata.AnnData], object] = lambda adata: None, **options: Any) -> Path:
        adata = build(**options)
        change(adata)
        adata.write_h5ad(tmp_path / "cells.h5ad")
        return tmp_path / "cells.h5ad"

    return write_changed


def assess(*arguments: object) -> dict[str, Any]:
    """Run the command and return its JSON."""
    result = CliRunner().invoke(app, ["assess", "multiomic", *map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_folds_of_a_file(write: Write, tmp_path: Path) -> None:
    found = assess("--data", write(num_cells=150), "--out", tmp_path / "out")
    assert next(iter(found["metrics"])) == "pearson"
    row = found["metrics"]["pearson"]
    assert row["floor"] < 0.3 < 0.8 < row["baseline"]
    assert row["baseline"] - 0.02 < row["product"] < row["ceiling"] < 1
    assert row["interval"][0] <= row["product"] - row["baseline"] <= row["interval"][1]
    assert found["metrics"]["rmse"]["product"] < found["metrics"]["rmse"]["floor"]
    assert {"within_type_pearson", "worst_protein_pearson", "spearman", "positive_auroc"} <= found["metrics"].keys()
    assert [each["protein"] for each in found["details"]["proteins"]] == list(PROTEINS)
    assert {each["space"] for each in found["details"]["joint"]["spaces"]} >= {"WNN", "concatenation"}
    unseen = found["details"]["unseen_proteins"]
    assert {each["gene"] for each in unseen["proteins"]} == {"CD3E", "CD4", "CD19", "CD14", "NCAM1"}
    assert unseen["mean"]["product"] > 0.4
    assert sum(found["chosen"].values()) == len(found["why"]) == 3
    page = (tmp_path / "out" / "report.html").read_text()
    for text in ("CD56", "Joint embedding", "Proteins never seen", "RMSE (lower is better)"):
        assert text in page, text


def test_transfer_matches_genes_and_proteins_by_name(write: Write, tmp_path: Path) -> None:
    query = build(60, seed=3)
    query.obsm["protein_counts"] = query.obsm["protein_counts"].iloc[:, ::-1][["CD14", "CD19", "CD4", "CD3"]]
    query.obsm["protein_counts"].columns = ["CD14_TotalSeqB", "CD19_TotalSeqB", "CD4_TotalSeqB", "CD3_TotalSeqB"]
    query = query[:, ::-1].copy()
    query.write_h5ad(tmp_path / "query.h5ad")
    options = ("--protocol", "transfer", "--query", tmp_path / "query.h5ad", "--out", tmp_path / "out")
    found = assess("--data", write(), *options)
    assert [each["protein"] for each in found["details"]["proteins"]] == ["CD3", "CD4", "CD19", "CD14"]
    assert found["metrics"]["pearson"]["product"] > 0.7
    assert any("4 proteins occur in both" in text for text in found["warnings"])


def test_batches_are_left_out_whole_and_equal_arguments_give_equal_reports(write: Write, tmp_path: Path) -> None:
    path = write(donor=[f"donor {row % 3}" for row in range(NUM_CELLS)])
    first, again = (
        assess("--data", path, "--batch-key", "donor", "--out", tmp_path / f"out{number}") for number in range(2)
    )
    assert first["split"] == "3 folds of whole batches"
    for report in (first, again):
        report.pop("seconds")
    assert first == again


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("kind", ["array", "sparse", "frame", "types", "h5mu"])
def test_proteins_are_found_in_every_form(kind: str, tmp_path: Path) -> None:
    adata = build()
    proteins = adata.obsm.pop("protein_counts")
    path = tmp_path / ("cells.h5mu" if kind == "h5mu" else "cells.h5ad")
    if kind == "array":
        adata.obsm["protein_expression"] = proteins.to_numpy()
        adata.uns["protein_names"] = np.array(PROTEINS, dtype=object)
    elif kind == "sparse":
        adata.obsm["adt"] = sparse.csr_matrix(proteins.to_numpy())
        adata.uns["adt_names"] = np.array(PROTEINS, dtype=object)
    elif kind == "frame":
        adata.obsm["CITE_counts"] = proteins
    elif kind == "types":
        joined = sparse.hstack([adata.X, sparse.csr_matrix(proteins.to_numpy())], format="csr")
        kinds = ["Gene Expression"] * NUM_GENES + ["Antibody Capture"] * 5
        var = pd.DataFrame({"feature_types": pd.Categorical(kinds)}, index=[*GENES, *PROTEINS])
        adata = anndata.AnnData(joined, obs=adata.obs, var=var)
    if kind == "h5mu":
        other = anndata.AnnData(proteins.to_numpy(), obs=adata.obs[[]], var=pd.DataFrame(index=list(PROTEINS)))
        with h5py.File(path, "w") as file:
            write_elem(file, "mod/rna", adata)
            write_elem(file, "mod/prot", other[::-1].copy())
    else:
        adata.write_h5ad(path)
    found = read_paired(str(path))
    assert found.proteins.names == PROTEINS
    assert found.genes == GENES, "an antibody is not a gene: CD4 is both"
    np.testing.assert_array_equal(found.proteins.values, proteins.to_numpy())
    np.testing.assert_array_equal(found.rna.values.toarray(), draw_cells()[0])


def test_what_is_left_out_is_named(write: Write) -> None:
    def change(adata: anndata.AnnData) -> None:
        table = adata.obsm["protein_counts"]
        table["IgG1 isotype"] = 3.0
        table["CD45"] = 100.0
        table.iloc[5] = 0

    found = read_paired(str(write(change)))
    assert found.proteins.names == (*PROTEINS, "CD45"), "CD45 differs in the cell without counts"
    assert found.num_cells == NUM_CELLS - 1
    assert found.warnings[0].startswith("IgG1 isotype: controls")
    assert found.warnings[1] == "1 cells without a count of any protein were left out"

    found = read_paired(str(write(lambda adata: adata.obsm["protein_counts"].insert(0, "CD45", 100.0))))
    assert found.proteins.names == PROTEINS
    assert found.warnings == ("CD45: the same in all cells, left out",)


def test_normalised_proteins_are_used_as_they_are(write: Write) -> None:
    def change(adata: anndata.AnnData) -> None:
        adata.obsm["protein_counts"] = centred_log_ratio(adata.obsm["protein_counts"].to_numpy())

    found = read_paired(str(write(change)))
    assert not found.proteins.are_counts
    np.testing.assert_array_equal(found.proteins.targets, found.proteins.values)
    assert "negative values" in found.warnings[0]
    assert found.proteins.names == tuple(f"protein_{place}" for place in range(5)), "numbered: nothing names them"


def test_one_protein_is_predicted_without_clr(write: Write, tmp_path: Path) -> None:
    def change(adata: anndata.AnnData) -> None:
        adata.obsm["protein_counts"] = adata.obsm["protein_counts"][["CD19"]]

    found = assess("--data", write(change), "--out", tmp_path / "out")
    assert found["metrics"]["pearson"]["product"] > 0.5
    assert "one protein" in found["warnings"][0]


def put_nan(adata: anndata.AnnData) -> None:
    adata.obsm["protein_counts"].iloc[3, 1] = np.nan


def drop_proteins(adata: anndata.AnnData) -> None:
    adata.obsm["X_pca"] = adata.obsm.pop("protein_counts").to_numpy()


def make_constant(adata: anndata.AnnData) -> None:
    adata.obsm["protein_counts"].iloc[:, :] = 5.0


def scale_rna(adata: anndata.AnnData) -> None:
    adata.X = adata.X.toarray() - 1.0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (put_nan, {}, "protein 'CD4' of cell 'c3' is nan"),
        (drop_proteins, {}, r"no matrix of proteins found.*--protein-key.*obsm/X_pca"),
        (make_constant, {}, "none of its 5 proteins can be predicted"),
        (scale_rna, {}, "gene '.*' of cell 'c0' is -1"),
        (lambda adata: None, {"num_cells": 2}, "2 cells with proteins; at least 20 are needed"),
    ],
)
def test_mistakes_are_named(
    write: Write, tmp_path: Path, change: Callable[[anndata.AnnData], None], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CorpusError, match=f"(?s){message}"):
        assess("--data", write(change, **options), "--out", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_one_gene_and_unknown_keys(write: Write, tmp_path: Path) -> None:
    adata = build()[:, :1].copy()
    adata.write_h5ad(tmp_path / "one.h5ad")
    found = assess("--data", tmp_path / "one.h5ad", "--out", tmp_path / "out")
    assert found["metrics"]["pearson"]["product"] is not None
    assert not found["details"]["joint"], "nothing can be kept out of one gene"
    with pytest.raises(CorpusError, match=r"no proteins under 'adt'.*obsm/protein_counts"):
        assess("--data", write(), "--protein-key", "adt", "--out", tmp_path / "out2")


@pytest.mark.parametrize(
    ("name", "word"), [("CD8a_TotalSeqB", "CD8A"), ("ADT-CD3", "CD3"), ("HLA-DR", "HLADR"), ("anti-CD45RA", "CD45RA")]
)
def test_names_of_proteins(name: str, word: str) -> None:
    assert protein_word(name) == word
