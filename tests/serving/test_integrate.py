"""`/v1/integrate` embeds as the integration that the served bundle carries: cells of its batches and of new ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from planted_batches import planted, write
from planted_reference import build_bundle
from scipy import sparse
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

import cytoray
from cytoray.api.sources import open_cells
from cytoray.cli.main import app
from cytoray.errors import ModelError
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.serving.client import Client
from cytoray.tasks.attaching import attach
from cytoray.tasks.integration.answers import IntegrateResponse
from cytoray.tasks.integration.embedding import BatchedEmbedder
from cytoray.tasks.integration.model import IntegrationModel
from cytoray.tasks.integration.reading import read_from
from cytoray.tasks.integration.recipe import Recipe

GENES = tuple(planted((2,)).var_names)
REFERENCE = planted((110, 90))


def batched(adata: Any) -> Any:
    with open_cells(adata, matrix="auto", gene_names="index") as reader:
        return read_from(reader, "batch")


def fit(folder: Path, bundle: ModelBundle, recipe: Recipe) -> Path:
    """Keep an integration, and the bundle that carries it."""
    embedder = BatchedEmbedder(bundle, "base") if "model" in recipe.views else None
    IntegrationModel.fit(batched(REFERENCE), recipe=recipe, embedder=embedder).save(folder / "kept")
    attach(bundle, {"integration": str(folder / "kept")}, out=folder / "bundle")
    return folder


@pytest.fixture(
    scope="module", params=[("expression", "scaled"), ("expression", "model")], ids=["views", "transformer"]
)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe("planted", views=request.param, alignments=1, smoothing=0.5)
    return fit(tmp_path_factory.mktemp("integration"), build_bundle(genes=GENES), recipe)


def body_of(adata: Any, batch: str, columns: slice = slice(None)) -> dict[str, Any]:
    counts = np.asarray(adata.X.todense())[:, columns]
    cells = [{"i": np.flatnonzero(row).tolist(), "v": row[row > 0].tolist()} for row in counts]
    return {"genes": list(GENES[columns]), "cells": cells, "batch": batch}


def test_cells_are_embedded_as_by_the_integration(
    folder: Path, build_service: Any, one_by_one: Any, listen: Any
) -> None:
    bundle = load_bundle(folder / "bundle")
    kept = IntegrationModel.load(folder / "kept").using(bundle, "this model")
    known, new = planted((12,), seed=3, first_batch=1), planted((40,), seed=4, first_batch=9)
    known.X = sparse.csr_matrix(sparse.diags_array((np.arange(12) != 2).astype(np.float32)) @ known.X)
    wanted = kept.transform(batched(known))
    url = listen(build_service(bundle, max_nonzeros=20_000, max_cells=64, batching=one_by_one))
    with Client(url, cells_per_request=8) as client, pytest.warns(UserWarning, match="have no gene that"):
        found = client.integrate(known, batch="batch 1")
    with Client(url) as client:
        mapped = client.integrate(new, batch="batch 9")
    with Client(url, cells_per_request=8) as client:  # a new batch is mapped as a whole, so all cells are sent together
        together = client.query(new, "integrate", batch="batch 9").obsm["X_cytoray_integrate"]
    np.testing.assert_allclose(together, mapped.embeddings, atol=1e-4)
    assert np.isnan(found.embeddings[2]).all()
    np.testing.assert_allclose(np.delete(found.embeddings, 2, axis=0), wanted, atol=1e-4)
    assert (found.recipe, found.is_new_batch, found.warnings) == ("planted", False, ())
    assert mapped.is_new_batch
    types = KNeighborsClassifier(5).fit(kept.embedding, REFERENCE.obs["cell_type"].astype(str))
    assert (types.predict(mapped.embeddings) == new.obs["cell_type"].astype(str)).mean() > 0.85
    mapped.write_to(new)
    np.testing.assert_array_equal(new.obsm["X_cytoray"], mapped.embeddings)


def test_few_cells_of_a_new_batch_are_warned_of_and_missing_genes_refused(
    folder: Path, build_service: Any, connect: Any
) -> None:
    http = connect(build_service(load_bundle(folder / "bundle"), max_nonzeros=20_000))
    request = body_of(planted((3,), seed=3), "other")
    request["cells"].append({"id": "none", "i": [], "v": []})
    response = http.post("/v1/integrate", json=request)
    assert response.status_code == 200, response.text
    answer = response.json()
    IntegrateResponse.model_validate_json(response.content)
    assert answer["cells"][3] == {"id": "none", "embedding": None}
    assert "'other' is not a batch of the integration, and its 4 cells are few" in answer["header"]["warnings"][0]
    published = http.get("/openapi.json").json()
    operation = published["paths"]["/v1/integrate"]["post"]
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer)):
        jsonschema.validate(
            instance, {**part["content"]["application/json"]["schema"], "components": published["components"]}
        )
    few = http.post("/v1/integrate", json=body_of(planted((3,)), "batch 0", slice(0, 12)))
    assert (few.status_code, few.json()["code"]) == (422, "unknown_genes")
    missing = http.post("/v1/integrate", json={key: value for key, value in request.items() if key != "batch"})
    assert (missing.status_code, missing.json()["errors"][0]["pointer"]) == (400, "/batch")


def test_a_model_without_an_integration_refuses(build_service: Any, connect: Any) -> None:
    response = connect(build_service(build_bundle(genes=GENES))).post(
        "/v1/integrate", json=body_of(planted((2,)), "batch 0", slice(0, 60))
    )
    assert (response.status_code, response.json()["code"]) == (409, "wrong_model")
    assert "--integration" in response.json()["detail"]


def test_an_integration_fits_its_transformer_and_its_genes_only(tmp_path: Path) -> None:
    bundle = build_bundle(genes=GENES)
    fit(tmp_path, bundle, Recipe("planted", views=("expression", "model")))
    with pytest.raises(ModelError, match=r"fitted with base \(weights .*not with this model"):
        attach(build_bundle(seed=1, genes=GENES), {"integration": str(tmp_path / "kept")}, out=tmp_path / "other")
    plain = tmp_path / "plain"
    plain.mkdir()
    fit(plain, bundle, Recipe("planted"))
    attach(build_bundle(seed=1, genes=GENES), {"integration": str(plain / "kept")}, out=tmp_path / "any")
    with pytest.raises(ModelError, match=r"28 of the 236 genes of the integration"):
        attach(build_bundle(genes=GENES[:30]), {"integration": str(plain / "kept")}, out=tmp_path / "none")


def test_a_named_transformer_is_a_candidate_in_python_and_by_command(tmp_path: Path) -> None:
    """It is opened again from where it was; another one is refused."""
    from cytoray.model.bundle import save_bundle
    from cytoray.tasks.integration import model as model_module
    from cytoray.tasks.integration.choosing import choose

    save_bundle(build_bundle(genes=GENES), tmp_path / "base")
    adata, names = planted((60, 50)), []

    def chosen(features: Any, **options: Any) -> Any:
        choice = choose(features, **options)
        names.extend(each.recipe.name for each in choice.candidates)
        (with_model,) = [each for each in choice.candidates if each.recipe.name == "with transformer"]
        return replace(choice, product=with_model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "choose", chosen)
        model = cytoray.integrate(adata, transformer=str(tmp_path / "base"))
    assert "with transformer" in names
    model.save(tmp_path / "kept")
    query = write(tmp_path, planted((40,), seed=4, first_batch=8), "query.h5ad")
    arguments = [str(query), "--with", str(tmp_path / "kept"), "--out", str(tmp_path / "out.h5ad")]
    assert "40 of 40" in CliRunner().invoke(app, ["integrate", *arguments], catch_exceptions=False).stdout
    save_bundle(build_bundle(seed=1, genes=GENES), tmp_path / "other")
    with pytest.raises(ModelError, match="not with"):
        CliRunner().invoke(app, ["integrate", *arguments, "--model", str(tmp_path / "other")], catch_exceptions=False)
