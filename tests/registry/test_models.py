"""A bundle comes back from the registry exactly as it went in, under the alias only when all of it is there."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
import torch

from cytoray.errors import CytorayError, DigestError, RegistryError
from cytoray.failpoints import VARIABLE, FailpointError
from cytoray.model.bundle import load_bundle
from cytoray.model.golden import check_golden_cells
from cytoray.registry.models import Lineage, list_versions, register, resolve
from cytoray.tracking import RunLog
from cytoray.tracking.server import connect

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
NAME = "annotator"


def stored(version) -> Path:
    """The folder where the store of these tests keeps the version's files."""
    return Path(version.source_uri.removeprefix("file://"))


def test_a_registered_bundle_resolves_to_the_same_weights_with_its_lineage_as_tags(tracking, make_bundle, tmp_path):
    folder = make_bundle(1)
    log = RunLog.start(tracking, run_name="finetune")
    assert log.finish()
    lineage = Lineage(log.mlflow_run_id, "manifest-sha", "config-sha", "git-sha", "models:/base/7")
    version = register(folder, name=NAME, tracking=tracking, lineage=lineage, alias="champion")
    assert (version.name, version.version, version.run_id, version.aliases) == (
        NAME,
        1,
        log.mlflow_run_id,
        ("champion",),
    )
    assert version.digest == hashlib.sha256((folder / "digests.json").read_bytes()).hexdigest()
    tags = connect(tracking.uri).get_model_version(NAME, "1").tags
    check_golden_cells(load_bundle(folder), tags.pop("cytoray.golden_cells"))
    assert int(tags.pop("cytoray.bundle_bytes")) == sum(path.stat().st_size for path in folder.iterdir())
    assert tags == {
        "cytoray.bundle_digest": version.digest,
        "cytoray.run_id": log.mlflow_run_id,
        "cytoray.corpus_manifest_digest": "manifest-sha",
        "cytoray.config_digest": "config-sha",
        "cytoray.git_revision": "git-sha",
        "cytoray.parent_version": "models:/base/7",
        "cytoray.trained_by": "test",
    }
    for uri in (f"models:/{NAME}@champion", f"models:/{NAME}/1"):
        bundle, found = resolve(uri, tracking=tracking, cache_folder=tmp_path / "cache")
        assert found == version
        expected = load_bundle(folder)
        assert (bundle.digest, bundle.labels) == (version.digest, expected.labels)
        for key, tensor in expected.model.state_dict().items():
            assert torch.equal(bundle.model.state_dict()[key], tensor)
    assert {path.suffix for path in stored(version).iterdir()} == {".json", ".safetensors"}


def test_registering_the_same_bundle_again_gives_the_same_version_and_makes_it_the_candidate(tracking, make_bundle):
    folder = make_bundle(1)
    first = register(folder, name=NAME, tracking=tracking)
    assert first.aliases == ("candidate",)
    assert register(make_bundle(2), name=NAME, tracking=tracking).aliases == ("candidate",)
    again = register(folder, name=NAME, tracking=tracking)
    assert (again.version, again.digest, again.source_uri) == (1, first.digest, first.source_uri)
    assert again.aliases == ("candidate",)
    assert [version.version for version in list_versions(NAME, tracking=tracking)] == [1, 2]


def test_the_previous_champion_stays_reachable_for_a_rollback(tracking, make_bundle, tmp_path):
    old, new = make_bundle(1), make_bundle(2)
    register(old, name=NAME, tracking=tracking, alias="champion")
    register(new, name=NAME, tracking=tracking, alias="champion")
    register(new, name=NAME, tracking=tracking, alias="champion")  # again: previous must not become the new one
    versions = {version.aliases: version.digest for version in list_versions(NAME, tracking=tracking)}
    assert versions == {("previous",): load_bundle(old).digest, ("champion",): load_bundle(new).digest}
    register(old, name=NAME, tracking=tracking, alias="champion")  # roll back
    bundle, version = resolve(f"models:/{NAME}@champion", tracking=tracking, cache_folder=tmp_path / "cache")
    assert (version.version, bundle.digest) == (1, load_bundle(old).digest)


@pytest.mark.faults
@pytest.mark.parametrize("point", ["register.after_upload", "register.before_candidate"])
def test_a_crash_while_registering_shows_nothing_and_a_rerun_finishes_it(
    tracking, make_bundle, monkeypatch, tmp_path, point
):
    register(make_bundle(1), name=NAME, tracking=tracking, alias="champion")
    candidate = make_bundle(2)
    monkeypatch.setenv(VARIABLE, f"{point}=raise")
    with pytest.raises(FailpointError):
        register(candidate, name=NAME, tracking=tracking, alias="champion")
    for version in list_versions(NAME, tracking=tracking):  # whatever version exists can be loaded
        resolve(f"models:/{NAME}/{version.version}", tracking=tracking, cache_folder=tmp_path / "cache")
    assert resolve(f"models:/{NAME}@champion", tracking=tracking, cache_folder=tmp_path / "cache")[1].version == 1
    monkeypatch.delenv(VARIABLE)
    assert register(candidate, name=NAME, tracking=tracking, alias="champion").version == 2
    assert len(list_versions(NAME, tracking=tracking)) == 2
    assert len(connect(tracking.uri).search_runs(["1"])) == 2  # no orphan run either


def test_files_that_were_lost_from_the_store_are_restored_by_registering_again(tracking, make_bundle, tmp_path):
    folder = make_bundle(1)
    version = register(folder, name=NAME, tracking=tracking)
    (stored(version) / "model.safetensors").unlink()
    with pytest.raises(DigestError, match="annotator version 1"):
        resolve(f"models:/{NAME}/1", tracking=tracking, cache_folder=tmp_path / "cache")
    assert register(folder, name=NAME, tracking=tracking).version == 1
    resolve(f"models:/{NAME}/1", tracking=tracking, cache_folder=tmp_path / "cache")


@pytest.mark.faults
@pytest.mark.parametrize("whole", [False, True], ids=["one flipped byte", "another bundle put in its place"])
def test_tampering_in_the_store_is_refused_and_leaves_no_cache(tracking, make_bundle, tmp_path, whole):
    version = register(make_bundle(1), name=NAME, tracking=tracking)
    for file in make_bundle(2).iterdir() if whole else []:
        (stored(version) / file.name).write_bytes(file.read_bytes())
    if not whole:
        weights = bytearray((stored(version) / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (stored(version) / "model.safetensors").write_bytes(weights)
    with pytest.raises(DigestError, match=r"annotator version 1.*register the bundle again"):
        resolve(f"models:/{NAME}/1", tracking=tracking, cache_folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_used_when_sound_and_replaced_when_damaged(tracking, make_bundle, tmp_path):
    version = register(make_bundle(1), name=NAME, tracking=tracking)
    uri, cache = f"models:/{NAME}/1", tmp_path / "cache"
    resolve(uri, tracking=tracking, cache_folder=cache)
    cached = cache / version.digest / "model.safetensors"
    away = stored(version).rename(tmp_path / "away")
    resolve(uri, tracking=tracking, cache_folder=cache)  # works without the store's files
    away.rename(stored(version))
    cached.write_bytes(b"damaged")
    resolve(uri, tracking=tracking, cache_folder=cache)
    assert cached.read_bytes() == (stored(version) / "model.safetensors").read_bytes()
    assert [path.name for path in cache.iterdir()] == [version.digest]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/nobody@champion", r"Unknown registered model 'nobody'.*Registered models: annotator"),
        (
            "models:/annotator@best",
            r"Unknown model version models:/annotator@best.*Versions: 1, 2; aliases: @champion \(version 2\)",
        ),
        ("models:/annotator/9", r"Unknown model version models:/annotator/9.*Versions: 1, 2"),
        ("annotator@champion", r"is not the URI of a model.*models:/NAME@ALIAS"),
        ("models:/../x/1", r"is not the URI of a model"),
    ],
)
def test_an_unknown_name_version_or_alias_lists_what_there_is(tracking, make_bundle, tmp_path, uri, message):
    register(make_bundle(1), name=NAME, tracking=tracking)
    register(make_bundle(2), name=NAME, tracking=tracking, alias="champion")
    with pytest.raises(RegistryError, match=message):
        resolve(uri, tracking=tracking, cache_folder=tmp_path / "cache")


def test_what_cannot_be_loaded_or_named_is_not_registered(tracking, make_bundle, tmp_path):
    folder = make_bundle(1)
    (folder / "labels.json").write_text("[]")
    for path in (folder, tmp_path / "absent"):
        with pytest.raises(CytorayError):
            register(path, name=NAME, tracking=tracking, alias="champion")
    with pytest.raises(RegistryError, match="not a model name"):
        register(make_bundle(2), name="a/b", tracking=tracking)
    with pytest.raises(RegistryError, match="No model has been registered yet"):
        list_versions(NAME, tracking=tracking)


def test_a_version_of_other_origin_is_refused(tracking, tmp_path):
    client = connect(tracking.uri)
    run = client.create_run("0")
    client.create_registered_model("foreign")
    client.create_model_version("foreign", f"{run.info.artifact_uri}/model", run.info.run_id)
    with pytest.raises(RegistryError, match="was not registered by cytoray"):
        resolve("models:/foreign/1", tracking=tracking, cache_folder=tmp_path / "cache")


def test_a_dead_mlflow_is_told_in_seconds(tracking, make_bundle, tmp_path):
    away = tracking.model_copy(update={"uri": "http://127.0.0.1:9"})
    before = time.monotonic()
    with pytest.raises(RegistryError, match="Check that it runs"):
        register(make_bundle(1), name=NAME, tracking=away)
    with pytest.raises(RegistryError, match="Check that it runs"):
        resolve(f"models:/{NAME}/1", tracking=away, cache_folder=tmp_path / "cache")
    assert time.monotonic() - before < 10
