"""`/v1/proteins` predicts as the protein model that the served bundle carries, and says how far it can be trusted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import jsonschema
import numpy as np
import pytest
from planted_proteins import GENES, PROTEINS, build
from planted_reference import build_bundle
from scipy import sparse
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import ModelError, RequestError
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.serving.client import Client
from cytoray.tasks import find_endpoint
from cytoray.tasks.attaching import attach
from cytoray.tasks.multiomic import assessment, members
from cytoray.tasks.multiomic.answers import LEVEL, ProteinsResponse
from cytoray.tasks.multiomic.protein_predictor import LEVEL as FITTED_LEVEL


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Smaller networks: the cells are few."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "NUM_FOLDS", 2)
        patch.setattr(members, "NUM_NETWORKS", 1)
        patch.setattr(members, "LAYERS", (16,))
        yield


@pytest.fixture(scope="module")
def folder(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A protein model, and a bundle that carries it."""
    folder = tmp_path_factory.mktemp("proteins")
    cytoray.ProteinModel.fit(build(100), "protein_counts").save(folder / "proteins")
    attach(build_bundle(genes=GENES), {"proteins": str(folder / "proteins")}, out=folder / "bundle")
    return folder


@pytest.fixture
def carrying(folder: Path) -> ModelBundle:
    return load_bundle(folder / "bundle")


def body_of(counts: np.ndarray, genes: tuple[str, ...] = GENES, **members: Any) -> dict[str, Any]:
    cells = [{"i": np.flatnonzero(row).tolist(), "v": row[row > 0].tolist()} for row in counts]
    return {"genes": list(genes), "cells": cells, **members}


def test_the_values_are_those_of_the_protein_model(
    carrying: ModelBundle, folder: Path, build_service: Any, one_by_one: Any, listen: Any
) -> None:
    assert LEVEL == FITTED_LEVEL
    adata = build(20, seed=5)
    wanted = cytoray.ProteinModel.load(folder / "proteins").predict(adata)
    with Client(listen(build_service(carrying, max_nonzeros=4000, batching=one_by_one)), cells_per_request=8) as client:
        found = client.proteins(adata)
        answered = client.query(adata, "proteins")
        some = client.proteins(list(GENES), adata.X, proteins=["CD14", "CD3"])
        with pytest.raises(RequestError, match=r"does not predict CD99.*CD3, CD4") as caught:
            client.proteins(adata, proteins=["CD99"])
    assert caught.value.code == "unknown_proteins"
    assert found.names == PROTEINS
    np.testing.assert_allclose(found.values, wanted.values, atol=1e-5)
    np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-6)
    np.testing.assert_allclose(found.half_width, wanted.half_width, atol=1e-6)
    assert found.units == "clr"
    np.testing.assert_array_equal(some.values, found.values[:, [3, 0]])
    np.testing.assert_allclose(answered.obsm["X_protein_predicted"], found.values, atol=1e-6)
    assert tuple(answered.uns["X_protein_predicted_names"]) == found.names
    found.write_to(adata)
    np.testing.assert_array_equal(adata.obsm["X_protein_predicted"], found.values)
    truth = np.log1p(adata.obsm["protein_counts"].to_numpy())
    truth -= truth.mean(axis=1, keepdims=True)
    assert np.corrcoef(found.values[:, 2], truth[:, 2])[0, 1] > 0.5


def test_files_get_the_same_values_offline(folder: Path, tmp_path: Path) -> None:
    adata = build(20, seed=5)
    adata.X = sparse.csr_matrix(sparse.diags_array((np.arange(20) != 2).astype(np.float32)) @ adata.X)
    wanted = cytoray.ProteinModel.load(folder / "proteins").predict(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = ["predict-proteins", tmp_path / "cells.h5ad", "--model", folder / "bundle", "--out", tmp_path / "out"]
    words += ["--h5ad", "--set", "rows_per_task=8"]
    CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    values = anndata.read_h5ad(tmp_path / "out" / "00000-cells.h5ad").obsm["X_protein_predicted"]
    assert np.isnan(values[2]).all()
    np.testing.assert_allclose(np.delete(values, 2, axis=0), np.delete(wanted.values, 2, axis=0), atol=1e-5)


def test_missing_genes_and_empty_cells(carrying: ModelBundle, build_service: Any, connect: Any) -> None:
    http = connect(build_service(carrying))
    counts = np.asarray(build(3, seed=6).X.todense())
    request = body_of(counts[:, :45], GENES[:45])
    request["cells"].append({"id": "none", "i": [], "v": []})
    response = http.post("/v1/proteins", json=request)
    assert response.status_code == 200, response.text
    ProteinsResponse.model_validate_json(response.content)
    answer = response.json()
    assert answer["cells"][3] == {"id": "none", "values": None}
    assert "genes are missing" in answer["header"]["warnings"][0]
    published = http.get("/openapi.json").json()
    operation = published["paths"]["/v1/proteins"]["post"]
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer)):
        jsonschema.validate(
            instance, {**part["content"]["application/json"]["schema"], "components": published["components"]}
        )
    few = http.post("/v1/proteins", json=body_of(counts[:, :10], GENES[:10]))
    assert (few.status_code, few.json()["code"]) == (422, "unknown_genes")


def test_a_request_that_is_refused_does_not_fail_its_neighbours(
    carrying: ModelBundle, build_service: Any, runner: Any
) -> None:
    service = build_service(carrying)
    counts = np.asarray(build(3, seed=6).X.todense())
    bodies = [json.dumps(body_of(counts)).encode(), json.dumps(body_of(counts[:, :10], GENES[:10])).encode()]

    async def ask() -> list[Any]:
        endpoint = find_endpoint("proteins")
        return await asyncio.gather(*(service.answer(endpoint, body) for body in bodies), return_exceptions=True)

    good, bad = runner.run(ask())
    runner.run(service.close())
    assert len(json.loads(good.content)["cells"]) == 3
    assert isinstance(bad, RequestError)


def test_a_model_without_proteins_refuses(build_service: Any, connect: Any) -> None:
    response = connect(build_service(build_bundle())).post("/v1/proteins", json=body_of(np.ones((1, 60))))
    assert (response.status_code, response.json()["code"]) == (409, "wrong_model")
    assert "--proteins" in response.json()["detail"]


def test_a_vocabulary_without_the_genes_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"of the \d+ genes of the protein model"):
        attach(build_bundle(), {"proteins": str(folder / "proteins")}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
