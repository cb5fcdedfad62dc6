"""`/v1/perturb` answers as the perturbation model that the served bundle carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from planted_reference import build_bundle
from planted_screen import GENES, NEW, screen, write_sets
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import NotFoundError, RequestError
from cytoray.model.bundle import load_bundle
from cytoray.serving.client import Client
from cytoray.tasks.attaching import attach
from cytoray.tasks.perturbation import knowledge
from cytoray.tasks.perturbation.answers import PerturbResponse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perturbation model, and a bundle that carries it."""
    found = tmp_path_factory.mktemp("perturbations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "SHIPPED", ())
        model = cytoray.PerturbationModel.fit(screen(15), gene_sets=[str(write_sets(found))])
    model.save(found / "model")
    attach(build_bundle(), {"perturbations": str(found / "model")}, out=found / "bundle")
    return found


def test_the_effects_are_those_of_the_model(folder: Path, build_service: Any, listen: Any) -> None:
    wanted = cytoray.PerturbationModel.load(folder / "model").predict([NEW, "IFNGR1+SMO"])
    with Client(listen(build_service(load_bundle(folder / "bundle")))) as client:
        found = client.perturb([NEW, "IFNGR1+SMO"], include_all=True)
        few = client.perturb([NEW], num_top=3)
        with pytest.raises(RequestError, match=r"'nonsense': not a gene") as caught:
            client.perturb(["nonsense"])
    assert caught.value.code == "unknown_perturbations"
    assert found.names == wanted.names
    assert found.genes == GENES
    np.testing.assert_allclose(found.deltas, wanted.deltas, atol=1e-5)
    np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-5)
    assert found.reasons == wanted.reasons
    assert [len(few.top_genes[0]), few.genes] == [3, ()]


def test_effects_at_a_dose(tmp_path: Path, build_service: Any, listen: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knowledge, "SHIPPED", ())
        model = cytoray.PerturbationModel.fit(
            screen(8, doses=(0.25, 1.0)), covariates=["dose"], gene_sets=[str(write_sets(tmp_path))]
        )
    model.save(tmp_path / "model")
    attach(build_bundle(), {"perturbations": str(tmp_path / "model")}, out=tmp_path / "bundle")
    points = [{"dose": 0.5}, {"dose": 1.0}]
    wanted = model.predict([NEW], at=points)
    with Client(listen(build_service(load_bundle(tmp_path / "bundle")))) as client:
        found = client.perturb([NEW], at=points, include_all=True)
        with pytest.raises(RequestError, match="no covariate 'time'"):
            client.perturb([NEW], at=[{"time": 1.0}])
    assert found.covariates == tuple(points)
    np.testing.assert_allclose(found.deltas, wanted.deltas, atol=1e-5)


def test_the_schema_is_published_and_kept(folder: Path, build_service: Any, connect: Any) -> None:
    http = connect(build_service(load_bundle(folder / "bundle")))
    request = {"perturbations": [NEW]}
    response = http.post("/v1/perturb", json=request)
    assert response.status_code == 200, response.text
    PerturbResponse.model_validate_json(response.content)
    published = http.get("/openapi.json").json()
    operation = published["paths"]["/v1/perturb"]["post"]
    for part, instance in ((operation["requestBody"], request), (operation["responses"]["200"], response.json())):
        schema = part["content"]["application/json"]["schema"]
        jsonschema.validate(instance, {**schema, "components": published["components"]})


def test_a_model_without_perturbations_refuses(build_service: Any, connect: Any, tmp_path: Path) -> None:
    response = connect(build_service(build_bundle())).post("/v1/perturb", json={"perturbations": [NEW]})
    assert (response.status_code, response.json()["code"]) == (409, "wrong_model")
    assert "--perturbations" in response.json()["detail"]
    with pytest.raises(NotFoundError, match="not a perturbation model"):
        attach(build_bundle(), {"perturbations": str(tmp_path)}, out=tmp_path / "out")


def test_the_command_takes_a_bundle(folder: Path, tmp_path: Path) -> None:
    screen(5).write_h5ad(tmp_path / "controls.h5ad")
    words = ["perturb", folder / "bundle", "--genes", NEW, "--data", tmp_path / "controls.h5ad"]
    CliRunner().invoke(app, list(map(str, [*words, "--out", tmp_path / "o.h5ad"])), catch_exceptions=False)
    assert (tmp_path / "o.h5ad").exists()
    assert (tmp_path / "o.json").exists()
