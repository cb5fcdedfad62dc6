"""Every form of a model's URI, on every face: the same bundle with its attachments, or an error that helps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cytoray import storage
from cytoray.api import scGPT, scGPTConfig
from cytoray.cli.main import app
from cytoray.config import build_config
from cytoray.errors import ConfigError, CytorayError, DigestError, NotFoundError, RegistryError, TrainingError
from cytoray.model.bundle import Attachment, ModelBundle, load_bundle, save_bundle
from cytoray.model.public_checkpoint import export_bundle, load_public_checkpoint
from cytoray.registry.models import register
from cytoray.registry.opening import find_digest, open_model
from cytoray.registry.pinning import Sources, open_pinned, pin_model
from cytoray.runs import BundleRecord, record_uri
from cytoray.serving.config import AppArgs
from cytoray.stages.config import EmbedConfig
from cytoray.stages.run import open_configured
from cytoray.tracking import TrackingConfig

INDEX = bytes(range(256)) * 9


@dataclass(frozen=True)
class Places:
    """Where the tests keep models."""

    store: str
    tracking: TrackingConfig
    cache: str
    digest: str
    public_digest: str


@pytest.fixture
def original(make_bundle: Callable[[int], Path], tmp_path: Path) -> Path:
    """A bundle's folder, with an attachment."""
    bundle = replace(load_bundle(make_bundle(1)), attachments={"index.faiss": Attachment(INDEX)})
    save_bundle(bundle, tmp_path / "models" / "tiny")
    return tmp_path / "models" / "tiny"


@pytest.fixture
def places(original: Path, tracking: TrackingConfig, tmp_path: Path, s3_uri: str) -> Places:
    """One model under every form of a URI."""
    bundle = load_bundle(original)
    assert bundle.digest is not None
    export_bundle(bundle, tmp_path / "models" / "public")
    for name in ("tiny", "public"):
        storage.upload_folder(tmp_path / "models" / name, f"{s3_uri}/{name}")
    store = str(tmp_path / "store")
    for run, uri in {"here": str(original), "there": f"{s3_uri}/tiny"}.items():
        record = BundleRecord(uri=uri, digest=bundle.digest, lineage={}, mlflow_run_id=None)
        storage.write_bytes(record_uri(store, run), record.model_dump_json().encode())
    register(original, name="annotator", tracking=tracking, alias="champion")
    public = load_public_checkpoint(tmp_path / "models" / "public").to_bundle()
    return Places(store, tracking, str(tmp_path / "cache"), bundle.digest, save_bundle(public, tmp_path / "imported"))


def _python(uri: str, places: Places) -> ModelBundle:
    config = scGPTConfig(
        model=uri, store=places.store, tracking_uri=places.tracking.uri, cache_folder=places.cache, device="cpu"
    )
    return scGPT(config).bundle


def _served(uri: str, places: Places) -> ModelBundle:
    args = AppArgs(model_uri=uri, store=places.store, tracking=places.tracking, cache_folder=places.cache)
    pinned = pin_model(args.model_uri, sources=args.sources())
    bundle = open_pinned(pinned, sources=args.sources()).bundle
    assert pinned.digest == bundle.digest
    assert "@" not in pinned.uri
    return bundle


def _stage(uri: str, places: Places) -> ModelBundle:
    sets = {"model": uri, "store": places.store, "tracking": {"uri": places.tracking.uri}, "out": "out"}
    sets |= {"data": [{"uri": "cells.h5ad"}], "cache_folder": places.cache}
    return open_configured(
        build_config(EmbedConfig, overrides=[f"{name}={json.dumps(value)}" for name, value in sets.items()])
    ).bundle


def _opened(uri: str, places: Places) -> ModelBundle:
    return open_model(uri, store=places.store, tracking=places.tracking, cache_folder=places.cache).bundle


FACES = {"open_model": _opened, "python": _python, "serving": _served, "stage": _stage}
BUNDLES = ["run:here", "run:there", "models:/annotator@champion", "models:/annotator/1", "{local}/tiny", "{s3}/tiny"]
PUBLIC = ["{local}/public", "{s3}/public"]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_every_form_opens_the_same_model_on_every_face(places: Places, original: Path, s3_uri: str):
    for form in BUNDLES + PUBLIC:
        uri = form.format(local=original.parent, s3=s3_uri)
        wanted = places.digest if form in BUNDLES else places.public_digest
        found = find_digest(uri, store=places.store, tracking=places.tracking, cache_folder=places.cache)
        assert found == wanted, uri
        for face, open_it in FACES.items():
            bundle = open_it(uri, places)
            assert bundle.digest == wanted, (face, uri)
            assert bundle.labels == ("T cell", "B cell"), (face, uri)
            if form in BUNDLES:
                assert bundle.attachments["index.faiss"].read() == INDEX, (face, uri)
    assert [path.name for path in Path(places.cache).iterdir()] == [places.digest], "one copy, and no drafts"


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_every_form_works_on_the_command_line(places: Places, original: Path, s3_uri: str, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for number, form in enumerate(BUNDLES + PUBLIC):
        uri = form.format(local=original.parent, s3=s3_uri)
        where = ["--store", places.store, "--uri", places.tracking.uri]
        done = CliRunner().invoke(app, ["models", "export", uri, "--out", str(tmp_path / f"out-{number}"), *where])
        assert done.exit_code == 0, (uri, done.output)
        assert ("no place for index.faiss" in done.output) == (form in BUNDLES)
        done = CliRunner().invoke(app, ["models", "register", uri, "--name", f"copy-{number}", *where])
        assert done.exit_code == 0, (uri, done.output)
        again = open_model(f"models:/copy-{number}/1", tracking=places.tracking, cache_folder=tmp_path / "other")
        assert again.digest == (places.digest if form in BUNDLES else places.public_digest)


@pytest.mark.parametrize(
    ("uri", "kind", "problem", "remedy"),
    [
        ("run:absent", TrainingError, "'absent' has exported no bundle", "here, there"),
        ("run:no/name", TrainingError, "not a run name", "letters"),
        ("models:/absent@champion", RegistryError, "Unknown registered model 'absent'", "annotator"),
        ("models:/annotator@best", RegistryError, "Unknown model version models:/annotator@best", "@champion"),
        (
            "annotator",
            NotFoundError,
            "neither a bundle.*does not exist",
            "run:NAME.*Runs: here, there.*models: annotator",
        ),
        ("{local}", NotFoundError, r"neither a bundle.*holds public, tiny", "folder or s3:// URI of a bundle"),
        ("{s3}/absent", NotFoundError, "neither a bundle", "run:NAME.*Registered models: annotator"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_an_unknown_name_lists_the_forms_and_the_models(
    places: Places, original: Path, s3_uri: str, uri: str, kind: type[CytorayError], problem: str, remedy: str
):
    uri = uri.format(local=original.parent, s3=s3_uri)
    with pytest.raises(kind, match=problem) as caught:
        _opened(uri, places)
    assert re.search(remedy, caught.value.remedy)
    for face in (_python, _served, _stage):
        with pytest.raises(kind, match=problem):
            face(uri, places)


def test_a_form_that_needs_a_place_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="run:base is a run, but no store is given"):
        open_model("run:base")
    with pytest.raises(ConfigError, match="no MLflow server is given"):
        find_digest("models:/annotator/1")


def test_another_bundle_than_the_one_that_a_run_exported_is_refused(places: Places, make_bundle, original: Path):
    other = make_bundle(2)
    shutil.rmtree(original)
    shutil.copytree(other, original)
    with pytest.raises(DigestError, match=f"expected {places.digest}.*run exported") as caught:
        _opened("run:here", places)
    assert caught.value.details["expected"] == places.digest


def test_changed_bytes_at_the_source_name_the_source(places: Places, s3_uri: str):
    storage.write_bytes(f"{s3_uri}/tiny/attachments/index.faiss", INDEX[:-1])
    with pytest.raises(DigestError, match=rf"{s3_uri}/tiny: .*attachments/index\.faiss has SHA-256"):
        _opened(f"{s3_uri}/tiny", places)
    assert list(Path(places.cache).iterdir()) == []


def test_a_cache_that_cannot_be_written_says_what_to_set(places: Places, s3_uri: str, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CytorayError, match="Set cache_folder"):
        open_model(f"{s3_uri}/tiny", cache_folder=tmp_path / "file")


def test_a_damaged_local_bundle_is_found_when_it_is_pinned(make_bundle, tmp_path):
    folder = make_bundle(1)
    sources = Sources(None, None, str(tmp_path / "cache"))
    assert pin_model(str(folder), sources=sources).digest == load_bundle(folder).digest
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(DigestError, match=r"model\.safetensors"):
        pin_model(str(folder), sources=sources)
