"""`/v1/networks` gives the neighbourhoods of genes in the network that the served bundle carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pandas as pd
import pytest
from planted_network import EDGES, GENES, build
from planted_reference import build_bundle

import cytoray
from cytoray.errors import ModelError, RequestError
from cytoray.model.bundle import ModelBundle, load_bundle
from cytoray.serving.client import Client
from cytoray.tasks.attaching import attach
from cytoray.tasks.networks.answers import NetworksResponse
from cytoray.tasks.networks.network import load_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, and a bundle that carries it."""
    folder = tmp_path_factory.mktemp("networks")
    build(100).write_h5ad(folder / "cells.h5ad")
    cytoray.infer_networks(
        str(folder / "cells.h5ad"), out=str(folder / "network"), num_trees=5, pool_size=1, gene_sets="none"
    )
    attach(build_bundle(genes=GENES), {"networks": str(folder / "network")}, out=folder / "bundle")
    return folder


@pytest.fixture
def carrying(folder: Path) -> ModelBundle:
    return load_bundle(folder / "bundle")


def test_the_neighbourhood_is_that_of_the_folder(
    folder: Path, carrying: ModelBundle, build_service: Any, listen: Any
) -> None:
    wanted = load_network(str(folder / "network")).neighbourhood("IRF1", num=6)
    with Client(listen(build_service(carrying))) as client:
        found = client.networks(["IRF1", "no such gene"], num_edges=6)
        with pytest.raises(RequestError, match="no group 'T'") as caught:
            client.networks(["IRF1"], group="T")
    assert caught.value.code == "unknown_group"
    both = found[found["tf"] == "IRF1"].reset_index(drop=True)
    expected = wanted[wanted["tf"] == "IRF1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        both[["tf", "target", "weight"]], expected[["tf", "target", "weight"]], check_dtype=False, check_exact=False
    )
    assert len(set(both["target"]) & set(EDGES["IRF1"])) >= 5


def test_it_is_published_and_checks_requests(carrying: ModelBundle, build_service: Any, connect: Any) -> None:
    http = connect(build_service(carrying))
    request = {"genes": ["IRF1", "other"], "num_edges": 2}
    response = http.post("/v1/networks", json=request)
    assert response.status_code == 200, response.text
    answer = response.json()
    NetworksResponse.model_validate_json(response.content)
    assert answer["unknown"] == ["other"]
    assert answer["group"] == "all"
    published = http.get("/openapi.json").json()
    operation = published["paths"]["/v1/networks"]["post"]
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer)):
        schema = {**part["content"]["application/json"]["schema"], "components": published["components"]}
        jsonschema.validate(instance, schema)
    wrong = http.post("/v1/networks", json={"genes": []})
    assert wrong.status_code == 400


def test_a_model_without_a_network_refuses(build_service: Any, connect: Any) -> None:
    response = connect(build_service(build_bundle())).post("/v1/networks", json={"genes": ["IRF1"]})
    assert response.status_code == 409
    assert "--networks" in response.json()["detail"]


def test_a_network_of_other_genes_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of the 60 genes of the network"):
        attach(build_bundle(), {"networks": str(folder / "network")}, out=tmp_path / "out")
