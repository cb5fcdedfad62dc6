"""`/v1/genes` gives the vectors of genes that the Python face gives, and their nearest genes."""

from __future__ import annotations

from typing import Any

import jsonschema
import numpy as np
import pytest
from planted_reference import GENES, build_bundle

from cytoray.api.genes import nearest_genes, static_embeddings
from cytoray.errors import RequestError
from cytoray.serving.client import Client
from cytoray.tasks.genes.answers import GenesResponse


def test_the_vectors_are_those_of_the_python_face(build_service: Any, listen: Any) -> None:
    bundle = build_bundle()
    wanted = static_embeddings(bundle)
    with Client(listen(build_service(bundle))) as client:
        found = client.genes([GENES[7], "no such gene", GENES[3]], neighbours=4)
        bare = client.genes([GENES[7]], include_embedding=False)
        nothing = client.genes(["no such gene"])
    assert found.genes == found.symbols == (GENES[7], GENES[3])
    assert found.unknown == nothing.unknown == ("no such gene",)
    assert nothing.embeddings.shape == (0, 0)
    np.testing.assert_array_equal(found.embeddings, wanted.loc[[GENES[7], GENES[3]]].to_numpy())
    near = nearest_genes(wanted, GENES[7], num=4)
    assert [gene for gene, _ in found.neighbours[0]] == list(near.index)
    np.testing.assert_allclose([cosine for _, cosine in found.neighbours[0]], near.to_numpy(), atol=1e-6)
    assert bare.embeddings.shape == (1, 0)
    assert bare.neighbours == ((),)


def test_nearest_genes_by_hand() -> None:
    table = static_embeddings(build_bundle())
    values = table.to_numpy(np.float64) - table.to_numpy(np.float64).mean(axis=0)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    cosines = values @ values[5]
    order = [row for row in np.argsort(-cosines) if row != 5][:6]
    found = nearest_genes(table, GENES[5], num=6)
    assert list(found.index) == [GENES[row] for row in order]
    np.testing.assert_allclose(found.to_numpy(), cosines[order], atol=1e-5)


def test_it_is_published_and_checks_requests(build_service: Any, connect: Any) -> None:
    http = connect(build_service(build_bundle()))
    request = {"genes": [GENES[0], "other"], "neighbours": 2}
    response = http.post("/v1/genes", json=request)
    assert response.status_code == 200, response.text
    answer = response.json()
    GenesResponse.model_validate_json(response.content)
    assert answer.keys() == {"model", "genes", "unknown"}
    published = http.get("/openapi.json").json()
    operation = published["paths"]["/v1/genes"]["post"]
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], answer)):
        schema = {**part["content"]["application/json"]["schema"], "components": published["components"]}
        jsonschema.validate(instance, schema)
    for wrong, pointer in (
        ({"genes": []}, "/genes"),
        ({"genes": ["a"], "neighbours": 101}, "/neighbours"),
        ({"genes": ["a"] * 257}, "/genes"),
        ({"genes": ["a"], "cells": []}, "/cells"),
    ):
        refused = http.post("/v1/genes", json=wrong)
        assert (refused.status_code, refused.json()["pointer"]) == (400, pointer)


def test_the_same_gene_by_two_names(build_service: Any, connect: Any) -> None:
    http = connect(build_service(build_bundle()))
    answer = http.post("/v1/genes", json={"genes": [GENES[0], GENES[0]], "include_embedding": False}).json()
    assert [one["symbol"] for one in answer["genes"]] == [GENES[0], GENES[0]]


def test_too_many_genes_are_refused_by_name(build_service: Any, listen: Any) -> None:
    with Client(listen(build_service(build_bundle()))) as client, pytest.raises(RequestError, match="at most 256"):
        client.genes([f"gene{number}" for number in range(257)])
