"""`/v1/map` answers with the reference that a model carries: as `reference query` does, and without blocking others."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import anndata
import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from planted_reference import GENES, as_anndata, build_bundle, build_planted, draw_counts
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.errors import ModelError, RequestError, ServingError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.serving.client import Client
from cytoray.tasks.attaching import attach
from cytoray.tasks.mapping.answers import MapResponse
from cytoray.tasks.mapping.reference import save_reference


def carry(folder: Path, *, embeddings: bool) -> Path:
    bundle = build_bundle()
    save_reference(build_planted(bundle, embeddings=embeddings), str(folder / "reference"))
    attach(bundle, {"reference": str(folder / "reference")}, out=folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that carries a reference by genes."""
    return carry(tmp_path_factory.mktemp("map"), embeddings=False)


@pytest.fixture(scope="module")
def with_embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that carries a reference of its embeddings."""
    return carry(tmp_path_factory.mktemp("map"), embeddings=True)


@pytest.fixture
def carrying(folder: Path) -> ModelBundle:
    return load_bundle(folder / "bundle")


def body_of(counts: sp.csr_matrix, *, num_genes: int = len(GENES), **members: Any) -> dict[str, Any]:
    rows = counts.toarray()[:, :num_genes]
    cells = [{"i": np.flatnonzero(row).tolist(), "v": row[row > 0].tolist()} for row in rows]
    return {"genes": list(GENES[:num_genes]), "cells": cells, **members}


def ask_offline(folder: Path, adata: anndata.AnnData, scratch: Path) -> dict[str, Any]:
    """What `cytoray reference query` answers."""
    adata.write_h5ad(scratch / "q.h5ad")
    options = ["--data", scratch / "q.h5ad", "--out", scratch / "a.json"]
    CliRunner().invoke(app, ["reference", "query", *map(str, [folder / "bundle", *options])], catch_exceptions=False)
    found: dict[str, Any] = json.loads((scratch / "a.json").read_text())
    return found


def assert_equal(seen: list[dict[str, Any]], wanted: list[dict[str, Any]], *, atol: float = 1e-6) -> None:
    for one, other in zip(seen, wanted, strict=True):
        assert {key: one[key] for key in ("label", "status", "set")} == {
            key: other[key] for key in ("label", "status", "set")
        }
        for key in ("probability", "unseen_p", "mapping_percentile", "x", "y"):
            assert one[key] == pytest.approx(other[key], abs=atol), key
        assert [near["ref_id"] for near in one["neighbours"]] == [near["ref_id"] for near in other["neighbours"]]


def test_the_answers_are_those_of_a_query_offline(
    carrying: ModelBundle, folder: Path, build_service: Any, one_by_one: Any, listen: Any, tmp_path: Path
) -> None:
    adata, types = as_anndata(30, seed=4)
    wanted = ask_offline(folder, adata, tmp_path)
    url = listen(build_service(carrying, max_nonzeros=4000, max_cells=16, batching=one_by_one))
    with Client(url, cells_per_request=8) as client:
        found = client.map(adata)
        again = client.map(list(GENES), adata.X)
        answered = client.query(adata, "map")
    assert_equal(found.cells, wanted["cells"])
    assert_equal(again.cells, wanted["cells"])
    assert np.mean([label == true for label, true in zip(found.labels, types, strict=True)]) > 0.9
    assert {**found.header, "warnings": []} == {key: value for key, value in wanted.items() if key != "cells"} | {
        "warnings": []
    }
    assert found.header["thresholds"] == {"unassigned": 0.02, "sets": 0.9}
    assert answered.obs["cytoray_map_label"].tolist() == list(found.labels)
    assert answered.obs["cytoray_map_set"].tolist() == [" | ".join(cell["set"]) for cell in found.cells]
    percentiles = [cell["mapping_percentile"] for cell in found.cells]
    np.testing.assert_allclose(answered.obs["cytoray_map_mapping_percentile"], percentiles, rtol=1e-6)
    np.testing.assert_allclose(answered.obsm["X_reference_umap"], found.places, atol=1e-6)
    found.write_to(adata)
    assert adata.obs["cytoray_label"].tolist() == list(found.labels)
    np.testing.assert_array_equal(adata.obsm["X_reference_umap"], found.places)
    cell = found.cells[0]
    assert len(cell["neighbours"]) == 5
    assert cell["neighbours"][0].keys() == {"ref_id", "label", "dataset", "batch", "distance"}
    assert cell["neighbours"][0]["batch"] in ("odd", "even")


def test_files_are_mapped_offline_with_the_same_answers(
    carrying: ModelBundle, folder: Path, build_service: Any, listen: Any, tmp_path: Path
) -> None:
    adata, _ = as_anndata(30, seed=4)
    adata.X = sp.csr_matrix(sp.diags_array((np.arange(30) != 3).astype(np.float32)) @ adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with (
        Client(listen(build_service(carrying, max_nonzeros=4000)), cells_per_request=8) as client,
        pytest.warns(UserWarning, match="no gene that the model knows"),
    ):
        wanted = client.map(adata)
    words = ["map", tmp_path / "cells.h5ad", "--model", folder / "bundle", "--out", tmp_path / "out", "--h5ad"]
    result = CliRunner().invoke(app, [*map(str, words), "--set", "rows_per_task=16"], catch_exceptions=False)
    summary = json.loads(result.stdout)
    assert summary["num_cells"] == 30
    assert summary["warnings"] == ["cells without a gene of the reference, whose answers are null: 1"]
    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("part-*"))]
    rows = [row for part in parts for row in part.to_pylist()]
    assert [part.num_rows for part in parts] == [16, 14]
    assert [row["obs_name"] for row in rows] == list(adata.obs_names)
    assert rows[3]["label"] is rows[3]["neighbours"] is rows[3]["x"] is None
    assert_equal(rows[:3] + rows[4:], wanted.cells[:3] + wanted.cells[4:], atol=1e-5)
    header = json.loads(parts[0].schema.metadata[b"cytoray.header"])
    assert (header["reference"], header["thresholds"]) == (wanted.header["reference"], wanted.header["thresholds"])
    written = anndata.read_h5ad(tmp_path / "out" / "00000-cells.h5ad")
    np.testing.assert_allclose(written.obsm["X_reference_umap"], wanted.places, atol=1e-5)
    assert written.obs["label"].astype(object).where(written.obs["label"].notna(), None).tolist() == list(wanted.labels)
    assert written.obs["set"].iloc[0] == " | ".join(wanted.cells[0]["set"])


def test_a_model_that_cannot_answer_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    adata, _ = as_anndata(3, seed=4)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    words = [tmp_path / "cells.h5ad", "--model", folder / "bundle", "--out", tmp_path / "out"]
    for command, problem in (("annotate", "was not trained to label"), ("predict-proteins", "not predict proteins")):
        with pytest.raises(RequestError, match=problem):
            CliRunner().invoke(app, [command, *map(str, words)], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_a_reference_of_embeddings_uses_the_served_model(
    with_embeddings: Path, build_service: Any, connect: Any, tmp_path: Path
) -> None:
    adata, _ = as_anndata(8, seed=4)
    wanted = ask_offline(with_embeddings, adata, tmp_path)
    http = connect(build_service(load_bundle(with_embeddings / "bundle")))
    answer = http.post("/v1/map", json=body_of(adata.X)).json()
    assert answer["header"]["space"] == "embeddings"
    assert answer["header"]["model"] == wanted["model"]
    # Whitening enlarges what the number of cells in a minibatch changes in the last digits of an embedding.
    assert_equal(answer["cells"], wanted["cells"], atol=1e-3)


def test_a_cell_without_a_gene_is_null_and_all_fits_the_published_schema(
    carrying: ModelBundle, build_service: Any, connect: Any
) -> None:
    http = connect(build_service(carrying))
    request = body_of(draw_counts(3, seed=5)[0])
    request["cells"].append({"id": "none", "i": [], "v": []})
    response = http.post("/v1/map", json=request)
    assert response.status_code == 200, response.text
    MapResponse.model_validate_json(response.content)
    answer = response.json()
    assert {key for key, value in answer["cells"][3].items() if value is not None} == {"cell_id"}
    assert [warning["indices"] for warning in answer["warnings"]] == [[3]]
    published = http.get("/openapi.json").json()
    operation = published["paths"]["/v1/map"]["post"]
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer)):
        schema = {**part["content"]["application/json"]["schema"], "components": published["components"]}
        jsonschema.validate(instance, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**instance, "surplus": 1}, schema)


def test_a_model_without_a_reference_refuses(build_service: Any, connect: Any) -> None:
    http = connect(build_service(build_bundle()))
    response = http.post("/v1/map", json=body_of(draw_counts(1, seed=5)[0]))
    assert (response.status_code, response.json()["code"]) == (409, "wrong_model")
    assert "models attach MODEL --reference" in response.json()["detail"]


def test_fewer_genes_are_fitted_once_while_others_are_answered(
    carrying: ModelBundle, folder: Path, build_service: Any, connect: Any, tmp_path: Path
) -> None:
    counts, _ = draw_counts(6, seed=6)
    http = connect(build_service(carrying))
    narrow = body_of(counts, num_genes=36)
    first = http.post("/v1/map", json=narrow)
    assert (first.status_code, first.json()["code"]) == (503, "fitting")
    assert first.headers["retry-after"] == "1"
    assert http.post("/v1/embed", json=narrow).status_code == 200
    assert http.post("/v1/map", json=body_of(counts)).status_code == 200
    other = http.post("/v1/map", json=body_of(counts, num_genes=30))
    assert other.json()["code"] == "fitting"
    for thread in threading.enumerate():
        if thread.name == "cytoray-refit":
            thread.join(120)
    second = http.post("/v1/map", json=narrow)
    assert second.status_code == 200, second.text
    assert second.json()["header"]["refitted"]
    adata, _ = as_anndata(6, seed=6)
    wanted = ask_offline(folder, adata[:, :36].copy(), tmp_path)
    assert wanted["refitted"]
    assert_equal(second.json()["cells"], wanted["cells"])


def test_the_client_waits_for_a_fit(carrying: ModelBundle, build_service: Any, listen: Any) -> None:
    adata, _ = as_anndata(12, seed=7)
    url = listen(build_service(carrying, max_nonzeros=4000))
    with Client(url, patience=0) as client, pytest.raises(ServingError, match="being fitted"):
        client.map(adata[:, :30].copy())
    with Client(url, patience=120) as client:
        assert client.map(adata[:, :30].copy()).header["refitted"]


def test_genes_that_the_reference_lacks_are_named(carrying: ModelBundle, build_service: Any, connect: Any) -> None:
    http = connect(build_service(carrying))
    response = http.post("/v1/map", json=body_of(draw_counts(2, seed=5)[0], num_genes=6))
    assert (response.status_code, response.json()["code"]) == (422, "unknown_genes")
    assert "genes, of at least 10" in response.json()["detail"]


def test_what_is_no_cells_is_refused_by_the_client() -> None:
    with Client("http://127.0.0.1:9") as client:  # nobody listens there
        assert {"map", "embed", "annotate"} <= set(dir(client))
        with pytest.raises(RequestError, match=r"map was given str.*client\.map\(adata\)"):
            client.map("cells.h5ad")
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            client.nothing(1)


def test_another_models_reference_is_found_when_the_service_starts(
    with_embeddings: Path, build_service: Any, tmp_path: Path
) -> None:
    other = build_bundle(seed=1)
    other.attachments = load_bundle(with_embeddings / "bundle").attachments
    save_bundle(other, tmp_path / "other")
    with pytest.raises(ModelError, match="built with planted"):
        build_service(load_bundle(tmp_path / "other"))
