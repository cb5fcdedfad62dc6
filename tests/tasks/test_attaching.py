"""Bundles that carry what was fitted with their model: attached, opened, registered, and refused if not theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted_reference import as_anndata, build_bundle, build_planted
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.errors import ConfigError, ConflictError, DigestError, ModelError
from cytoray.model.bundle import DIGESTS, ModelBundle, compute_weights_digest, load_bundle, save_bundle
from cytoray.registry.models import register
from cytoray.registry.opening import open_model
from cytoray.tasks.attaching import attach, attached_files
from cytoray.tasks.mapping.attached import attached_reference
from cytoray.tasks.mapping.reference import Reference, load_reference, save_reference
from cytoray.tracking import TrackingConfig


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return build_bundle()


@pytest.fixture(scope="module")
def reference(bundle: ModelBundle) -> Reference:
    return build_planted(bundle, embeddings=True)


@pytest.fixture(scope="module")
def folder(bundle: ModelBundle, reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reference of its embeddings, and the model that carries it."""
    folder = tmp_path_factory.mktemp("attached")
    save_bundle(bundle, folder / "model")
    save_reference(reference, str(folder / "reference"))
    run("models", "attach", folder / "model", "--reference", folder / "reference", "--out", folder / "both")
    return folder


def test_a_model_carries_its_reference(folder: Path) -> None:
    opened = open_model(str(folder / "both"))
    assert set(attached_files(opened.bundle, "reference")) == {path.name for path in (folder / "reference").iterdir()}
    carried, alone = attached_reference(opened.bundle), load_reference(str(folder / "reference"))
    assert carried is not None
    assert carried.digest == alone.digest == opened.bundle.lineage["reference"]
    assert opened.digest != load_bundle(folder / "model").digest
    assert compute_weights_digest(opened.bundle) == carried.about["model"]["weights"]
    assert attached_reference(load_bundle(folder / "model")) is None


def test_a_query_names_the_model_that_carries_the_reference(folder: Path, tmp_path: Path) -> None:
    adata, _ = as_anndata(12, seed=3)
    adata.write_h5ad(tmp_path / "q.h5ad")
    asked = ["--data", tmp_path / "q.h5ad", "--out"]
    run("reference", "query", folder / "both", *asked, tmp_path / "a.json")
    run("reference", "query", folder / "reference", *asked, tmp_path / "b.json", "--model", folder / "both")
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())
    with pytest.raises(ConfigError, match="carries no reference"):
        run("reference", "query", folder / "model", *asked, tmp_path / "c.json")


def test_it_is_registered_with_it(folder: Path, mlflow_uri: str, tmp_path: Path) -> None:
    tracking = TrackingConfig(uri=mlflow_uri, artifact_location=str(tmp_path / "artifacts"))
    register(folder / "both", name="atlas", tracking=tracking)
    opened = open_model("models:/atlas@candidate", tracking=tracking, cache_folder=tmp_path / "cache")
    carried = attached_reference(opened.bundle)
    assert carried is not None
    assert len(carried.meta) == 90
    assert carried.index.num_points == 90


def test_another_models_reference_is_refused_with_both_digests(folder: Path, bundle: ModelBundle) -> None:
    other = build_bundle(seed=1)
    with pytest.raises(ModelError, match="built with planted") as caught:
        attach(other, {"reference": str(folder / "reference")}, out=folder / "refused")
    digests = (compute_weights_digest(bundle), compute_weights_digest(other))
    assert (caught.value.details["expected"], caught.value.details["seen"]) == digests
    assert all(digest[:16] in str(caught.value) for digest in digests)
    carried = load_bundle(folder / "both")
    other.attachments = carried.attachments  # as training in a program might
    with pytest.raises(ModelError, match="built with planted"):
        attached_reference(other)
    assert not (folder / "refused").exists()


def test_a_reference_without_a_model_fits_any_of_its_vocabulary(bundle: ModelBundle, tmp_path: Path) -> None:
    save_reference(build_planted(bundle), str(tmp_path / "reference"))
    for seed in (1, 2):
        attach(build_bundle(seed=seed), {"reference": str(tmp_path / "reference")}, out=tmp_path / f"with{seed}")
    found = load_bundle(tmp_path / "with2")
    assert attached_reference(found) is not None
    about = json.loads((tmp_path / "reference" / "map.json").read_text())
    about["vocabulary"] = "0" * 64
    (tmp_path / "reference" / "map.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="another vocabulary"):
        attach(build_bundle(), {"reference": str(tmp_path / "reference")}, out=tmp_path / "refused")


def test_what_lies_in_the_way_and_damage(folder: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="already exists"):
        attach(bundle, {"reference": str(folder / "reference")}, out=folder / "model")
    with pytest.raises(ConfigError, match=r"Nothing to attach.*--reference"):
        attach(bundle, {}, out=tmp_path / "none")
    damaged = tmp_path / "reference"
    damaged.mkdir()
    for file in (folder / "reference").iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    data = bytearray((damaged / "index.faiss").read_bytes())
    data[-1] ^= 1
    (damaged / "index.faiss").write_bytes(data)
    with pytest.raises(DigestError, match=r"index\.faiss"):
        attach(bundle, {"reference": str(damaged)}, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["reference"]
    assert DIGESTS not in {path.name for path in damaged.iterdir()}


def test_attaching_again_replaces(folder: Path, bundle: ModelBundle, tmp_path: Path) -> None:
    save_reference(build_planted(bundle), str(tmp_path / "other"))
    attach(load_bundle(folder / "both"), {"reference": str(tmp_path / "other")}, out=tmp_path / "again")
    found = attached_reference(load_bundle(tmp_path / "again"))
    assert found is not None
    assert found.about["model"] is None
