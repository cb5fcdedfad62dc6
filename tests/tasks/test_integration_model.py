"""An integration that is kept: it embeds its own cells again, further cells of its batches, and a new batch."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from planted_batches import planted, write
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

import cytoray
from cytoray.api.sources import open_cells
from cytoray.cli.main import app
from cytoray.errors import ConfigError, CorpusError, DigestError, ModelError
from cytoray.tasks.integration import model as model_module
from cytoray.tasks.integration.cells import BatchedCells
from cytoray.tasks.integration.model import ARRAYS, IntegrationModel
from cytoray.tasks.integration.reading import read_from
from cytoray.tasks.integration.recipe import Recipe, product_recipes

RECIPES = {recipe.name: recipe for recipe in (Recipe("harmony"), *product_recipes())}


def batched(adata: anndata.AnnData) -> BatchedCells:
    """The cells as integration reads them."""
    with open_cells(adata, matrix="auto", gene_names="index") as reader:
        return read_from(reader, "batch")


def agreement(reference: anndata.AnnData, fitted: np.ndarray, query: anndata.AnnData, embedded: np.ndarray) -> float:
    """Share of query cells whose nearest fitted cells have their type."""
    search = KNeighborsClassifier(5).fit(fitted, reference.obs["cell_type"].astype(str))
    return float((search.predict(embedded) == query.obs["cell_type"].astype(str)).mean())


@pytest.mark.parametrize("name", RECIPES)
def test_further_cells_lie_where_their_type_is(name: str, tmp_path: Path) -> None:
    reference = planted((110, 90, 70))
    model = IntegrationModel.fit(batched(reference), recipe=RECIPES[name])
    again = model.transform(batched(reference))
    assert np.corrcoef(again.ravel(), model.embedding.ravel())[0, 1] > 0.97
    for query in (planted((60,), seed=1, first_batch=1), planted((60,), seed=2, first_batch=9)):
        embedded = model.transform(batched(query))
        assert embedded.shape == (60, model.embedding.shape[1])
        assert agreement(reference, model.embedding, query, embedded) > 0.9, query.obs["batch"].iloc[0]

    digest = model.save(tmp_path / "kept")
    kept = IntegrationModel.load(str(tmp_path / "kept"))
    np.testing.assert_allclose(kept.transform(batched(query)), embedded, atol=1e-4)
    assert kept.save(str(tmp_path / "copy")) == digest
    shuffled = query[:, np.random.default_rng(0).permutation(query.n_vars)[:200]].copy()
    assert agreement(reference, model.embedding, query, kept.transform(batched(shuffled))) > 0.8


def test_a_changed_or_missing_model_is_refused(tmp_path: Path) -> None:
    model = IntegrationModel.fit(batched(planted((40, 40))), recipe=Recipe("harmony"))
    model.save(tmp_path)
    other = planted((40,))
    other.var_names = [f"other{n}" for n in range(other.n_vars)]
    with pytest.raises(CorpusError, match="0 of the model's"):
        model.transform(batched(other))
    data = bytearray((tmp_path / ARRAYS).read_bytes())
    data[-1] ^= 1
    (tmp_path / ARRAYS).write_bytes(data)
    with pytest.raises(DigestError, match=ARRAYS):
        IntegrationModel.load(tmp_path)
    with pytest.raises(ModelError, match="does not hold an integration"):
        IntegrationModel.load(tmp_path / "nowhere")


def test_integrate_in_python_and_by_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adata = planted((70, 60, 50), donor="x")
    adata.obs["batch"] = [None if n == 3 else name for n, name in enumerate(adata.obs["batch"])]
    monkeypatch.setattr(model_module, "MAX_CELLS", 150)  # the others are embedded afterwards
    file = write(tmp_path, adata)
    model = cytoray.integrate(adata, batch_key="batch")
    assert len(model.codes) == 150
    points = adata.obsm["X_cytoray"]
    assert np.isnan(points).any(axis=1).nonzero()[0].tolist() == [3]
    assert adata.uns["cytoray_integration"]["why"] == model.why != ""

    out, kept = tmp_path / "out.h5ad", tmp_path / "kept"
    arguments = [str(file), "--out", str(out), "--model-out", str(kept), "--json"]
    answer = json.loads(CliRunner().invoke(app, ["integrate", *arguments], catch_exceptions=False).stdout)
    assert (answer["num_cells"], answer["num_embedded"]) == (180, 179)
    written = anndata.read_h5ad(out)
    np.testing.assert_allclose(written.obsm["X_cytoray"], points, atol=1e-4)
    assert written.obs["donor"].eq("x").all()
    assert (written.X != adata.X).nnz == 0

    query = write(tmp_path, planted((50,), seed=4, first_batch=8), "query.h5ad")
    arguments = [str(query), "--with", str(kept), "--out", str(tmp_path / "query-out.h5ad")]
    result = CliRunner().invoke(app, ["integrate", *arguments], catch_exceptions=False)
    assert "50 of 50 cells embedded" in result.stdout
    embedded = anndata.read_h5ad(tmp_path / "query-out.h5ad")
    known = ~np.isnan(points).any(axis=1)
    assert agreement(adata[known], points[known], embedded, embedded.obsm["X_cytoray"]) > 0.9
    with pytest.raises(ConfigError, match="is the file of cells itself"):
        CliRunner().invoke(app, ["integrate", str(file), "--out", str(file)], catch_exceptions=False)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def with_log(adata: anndata.AnnData) -> anndata.AnnData:
    values = adata.X.toarray()
    adata.X = sparse.csr_matrix(np.log1p(1e4 * values / values.sum(axis=1, keepdims=True)))
    return adata


def with_equal_names(adata: anndata.AnnData) -> anndata.AnnData:
    names = list(adata.var_names)
    adata.var_names = [*names[:-20], *names[:20]]
    adata.obs_names = ["cell"] * adata.n_obs
    return adata


def with_empty_genes(adata: anndata.AnnData) -> anndata.AnnData:
    values = adata.X.toarray()
    values[:, 60:] = 0
    values[10] = 0
    adata.X = sparse.csr_matrix(values)
    return adata


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(
    ("adata", "num_cells"),
    [
        (planted([20] * 12), 240),
        (planted([80, 5, 1]), 86),
        (with_log(planted()), 180),
        (with_equal_names(planted()), 180),
        (with_empty_genes(planted()), 179),
        (planted((12, 12))[:, 20:44].copy(), 24),
    ],
    ids=["many batches", "tiny batches", "log-normalised", "equal names", "empty genes", "few cells and genes"],
)
@pytest.mark.parametrize("name", ["harmony", "two views, sharpened"])
def test_odd_cells_are_embedded(adata: anndata.AnnData, num_cells: int, name: str) -> None:
    cells = batched(adata)
    model = IntegrationModel.fit(cells, recipe=RECIPES[name])
    assert model.embedding.shape[0] == len(cells.batches) == num_cells
    for points in (model.embedding, model.transform(cells)):
        assert np.isfinite(points).all()
        assert points.std() > 0
