"""A model is traced to its sources and rebuilt from them; what is not what it was is named before the start."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import finetune_config, finish_run, make_corpus, pretrain_config

from cytoray import provenance
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.manifest import CorpusManifest, load_manifest
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.errors import ConfigError, CorpusError, CytorayError, RegistryError, TrainingError
from cytoray.model.bundle import Attachment, load_bundle, save_bundle
from cytoray.operations.reproducing import rebuild as rebuilding
from cytoray.operations.reproducing.compare import compare_bundles
from cytoray.operations.reproducing.lineage import Places, trace_model
from cytoray.operations.reproducing.plan import CorpusStep, Plan, RunStep, plan_reproduction
from cytoray.operations.reproducing.rebuild import Reproduction, open_target, rebuild
from cytoray.registry.models import register
from cytoray.runs import find_bundle, run_folder
from cytoray.tracking import TrackingConfig

NUM_CELLS = 240


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A place with files, a store with two versions of a corpus, a run on the first, and one on the second that starts
    from that run; and a copy of it. Made once: paths are part of what is tested."""
    here = tmp_path_factory.mktemp("made")
    synthesise(here / "raw", SynthConfig(num_cells=NUM_CELLS, num_genes=600, mean_genes=80, num_files=3))
    last = sorted((here / "raw").glob("*.h5ad"))[-1]
    last.rename(here / "later.h5ad")
    store = str(here / "store")
    make_corpus(store, [{"uri": f"{here}/raw/"}])
    finish_run(pretrain_config(store, here), seed=1)
    make_corpus(store, [{"uri": f"{here}/later.h5ad"}], append=True)
    finish_run(finetune_config(store, here), seed=2)
    copy = here.with_name("copy")
    shutil.copytree(here, copy)
    yield here, copy
    shutil.rmtree(copy)


@pytest.fixture
def store(made: tuple[Path, Path]) -> str:
    """The store, as it was made; files have their times of change."""
    here, copy = made
    shutil.rmtree(here)
    shutil.copytree(copy, here)
    return str(here / "store")


@pytest.fixture
def sources(store: str) -> Path:
    """The folder with the two files of the first version."""
    return Path(store).with_name("raw")


def plan(store: str, uri: str = "run:tuned", **options: Any) -> Plan:
    return plan_reproduction(trace_model(uri, places=Places(store)), **options)


def steps(found: Plan) -> list[str]:
    return [step.title for step in found.steps]


def retrain(monkeypatch: pytest.MonkeyPatch, seeds: dict[str, int]) -> list[str]:
    """Let the stages that train leave weights of these seeds; training itself is tested elsewhere, and below."""
    trained: list[str] = []

    def find_stage(kind: str) -> Callable[[Any], Any]:
        def run(config: Any) -> None:
            trained.append(config.run)
            finish_run(config, seed=seeds[config.run])

        assert kind in ("pretrain", "finetune")
        return run

    monkeypatch.setattr(rebuilding, "find_stage", find_stage)
    return trained


def reproduce(found: Plan, out: Path) -> Reproduction:
    return rebuild(found, open_target(found, out))


def edit_manifest(store: str, version: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a manifest as an older version of cytoray would have, with the commit that names it."""
    import hashlib

    from cytoray.corpus.manifest import _Commit, corpus_uri, version_uri

    uri = corpus_uri(store, "cells")
    values = load_manifest(store, f"cells@{version}").model_dump(mode="json")
    change(values)
    data = CorpusManifest.model_validate_json(json.dumps(values)).model_dump_json().encode()
    digest = hashlib.sha256(data).hexdigest()
    (Path(uri) / f"manifests/{digest}.json").write_bytes(data)
    commit = _Commit(manifest_key=f"manifests/{digest}.json", manifest_sha256=digest, attempt="old")
    Path(version_uri(uri, version)).write_bytes(commit.sealed())


def test_a_chain_of_runs_and_versions_is_rebuilt_in_order(
    store: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(sources.with_name("later.h5ad"), sources / "zz-new.h5ad")  # came after version 1
    found = plan(store)
    assert steps(found) == ["cells@1", "pretrain base", "cells@2", "finetune tuned"]
    assert [each.corpus for each in found.steps if isinstance(each, RunStep)] == ["cells", "cells"]
    assert [len(each.sources) for each in found.steps if isinstance(each, CorpusStep)] == [2, 1]
    assert found.warnings == ()
    trained = retrain(monkeypatch, {"base": 1, "tuned": 2})
    result = reproduce(found, tmp_path / "again")
    assert trained == ["base", "tuned"]
    assert result.equal, result
    again = result.store
    for version in (1, 2):
        one, two = (load_manifest(place, f"cells@{version}") for place in (store, again))
        assert one.digest == two.digest
        assert one.model_dump_json() == two.model_dump_json()
    for name in ("base", "tuned"):
        one, two = (find_bundle(place, name) for place in (store, again))
        first, second = (load_file(f"{each.uri}/model.safetensors") for each in (one, two))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert two.uri.startswith(again)
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["equal"]
    assert [each["what"] for each in report["comparisons"]] == [
        "corpus cells@1", "run base", "corpus cells@2", "run tuned", "run:tuned",
    ]  # fmt: skip
    # again: nothing is trained or ingested, and nothing of the original was touched
    monkeypatch.setattr(rebuilding, "ingest", None)
    assert reproduce(found, tmp_path / "again") == result
    assert trained == ["base", "tuned"]


def test_an_interrupted_rebuild_continues(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = plan(store)
    trained = retrain(monkeypatch, {"base": 1})
    with pytest.raises(KeyError, match="tuned"):  # dies before the second run
        reproduce(found, tmp_path / "again")
    assert trained == ["base", "tuned"]
    trained = retrain(monkeypatch, {"base": 1, "tuned": 2})
    assert reproduce(found, tmp_path / "again").equal
    assert trained == ["tuned"]


def test_other_weights_are_reported_with_their_difference(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = plan(store, "run:base")
    retrain(monkeypatch, {"base": 5})
    result = reproduce(found, tmp_path / "again")
    assert not result.equal
    corpus, run, model = result.comparisons
    assert corpus.equal
    assert not run.equal
    assert not model.equal
    first, second = (
        load_file(f"{find_bundle(place, 'base').uri}/model.safetensors") for place in (store, result.store)
    )
    largest = max(float((first[key].double() - second[key].double()).abs().max()) for key in first)
    assert run.max_difference == largest > 0
    assert "model.safetensors" in run.differences


def test_changed_and_missing_sources_are_named_before_anything_is_rebuilt(store: str, sources: Path, tmp_path: Path):
    first, second = sorted(sources.glob("*.h5ad"))
    first.write_bytes(first.read_bytes() + b"x")
    second.unlink()
    found = plan(store)
    assert [(each.uri, each.state) for each in found.bad_sources] == [(str(first), "changed"), (str(second), "missing")]
    with pytest.raises(CorpusError) as caught:
        reproduce(found, tmp_path / "again")
    assert str(first) in caught.value.problem
    assert str(second) in caught.value.problem
    assert caught.value.details["sources"] == [str(first), str(second)]
    assert not (tmp_path / "again" / "store" / "corpora").exists()


def test_a_copied_file_is_judged_by_its_cells(
    store: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first, _ = sorted(sources.glob("*.h5ad"))
    os.utime(first, (1, 1))
    found = plan(store, "run:base")
    assert found.bad_sources == ()
    assert [warning for warning in found.warnings if str(first) in warning]
    retrain(monkeypatch, {"base": 1})
    result = reproduce(found, tmp_path / "again")
    assert result.equal
    corpus = result.comparisons[0]
    assert corpus.differences == (f"the record of source {first}",)
    one, two = (load_manifest(place, "cells@1") for place in (store, result.store))
    assert one.digest != two.digest
    assert one.content_digest == two.content_digest


def test_an_older_corpus_needs_its_configuration(
    store: str, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    digest = load_manifest(store, "cells@1").digest
    edit_manifest(store, 1, lambda values: values["increments"][0].pop("config"))
    assert load_manifest(store, "cells@1").digest == digest, "older digests stay what they were"
    with pytest.raises(CorpusError, match="did not record the configuration") as caught:
        plan(store, "run:base")
    config = tmp_path / "ingest.yaml"
    config.write_text(f"kind: ingest\nstore: elsewhere\ncorpus: cells\nsources: [{{uri: {sources}/}}]\n")
    fingerprint = IngestConfig.model_validate_json(
        json.dumps({"store": "x", "corpus": "cells", "sources": [{"uri": f"{sources}/"}]})
    ).fingerprint()
    assert fingerprint[:12] in caught.value.remedy
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(config.read_text() + "seed: 3\n")
    with pytest.raises(CorpusError, match="did not record"):
        plan(store, "run:base", ingests=[wrong])
    found = plan(store, "run:base", ingests=[wrong, config])
    retrain(monkeypatch, {"base": 1})
    assert reproduce(found, tmp_path / "again").equal


def test_nothing_is_overwritten(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = plan(store, "run:base")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="has other files"):
        open_target(found, tmp_path / "mine")
    with pytest.raises(ConfigError, match="has other files"):  # the original itself
        open_target(found, tmp_path / "new", store=store)
    with pytest.raises(ConfigError, match="is a file"):
        open_target(found, tmp_path / "mine" / "notes.txt")
    open_target(found, tmp_path / "taken")
    with pytest.raises(ConfigError, match="another model"):
        open_target(plan(store), tmp_path / "taken")
    open_target(found, tmp_path / "taken")  # continues
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_what_may_differ_is_reported_before_the_start(store: str, tmp_path: Path):
    assert plan(store).warnings == ()
    record = Path(run_folder(store, "base")) / "run.json"
    values = json.loads(record.read_text())
    values["environment"] |= {"torch": "1.0", "source_digest": "0" * 64}
    record.write_text(json.dumps(values))
    done = Path(run_folder(store, "tuned")) / "DONE.json"
    hardware = [{"processor": "Some other chip"}, {"processor": "Some other chip", "gpu": "H200"}]
    events = ["started with 2 workers at step 0", "optimizer.learning_rate was changed from 1 to 2"]
    done.write_text(json.dumps({"mlflow_run_id": None, "hardware": hardware, "events": events}))
    told = "\n".join(plan(store).warnings)
    assert f"run base: torch 1.0, this is {provenance.environment()['torch']}: weights may differ" in told
    assert "run base: the files of cytoray differ" in told
    assert "run tuned: it was trained on GPUs (H200)" in told
    assert "run tuned: it was trained on Some other chip, this is " in told
    assert "run tuned: optimizer.learning_rate was changed" in told
    assert "started with" not in told
    del values["environment"]  # as older runs
    record.write_text(json.dumps(values))
    assert any(line.startswith("run base: it records neither") for line in plan(store).warnings)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("runs/base/run.json", "Run 'base' is no longer in"),
        ("runs/base/BUNDLE.json", "Run 'base' has exported no bundle"),
        ("corpora/cells/versions/000001.json", "has no version with the manifest digest"),
    ],
)
def test_what_the_lineage_lacks_is_named(store: str, gone: str, message: str):
    (Path(store) / gone).unlink()
    with pytest.raises(CytorayError, match=message):
        plan(store)


def test_a_bundle_and_a_registered_version_lead_to_their_store(
    store: str, migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = find_bundle(store, "base")
    trace = trace_model(bundle.uri, places=Places())
    assert [(run.name, run.store) for run in trace.runs] == [("base", store)]
    assert trace.model.digest == bundle.digest
    shutil.copy(migrated_database, tmp_path / "registry.db")
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/registry.db", journal_folder=str(tmp_path / "journal"))
    copied = tmp_path / "copied"
    loaded = load_bundle(Path(bundle.uri))
    loaded.attachments = {"more.json": Attachment(b"{}")}
    save_bundle(loaded, copied)
    register(copied, name="blood", tracking=tracking, alias="champion")
    found = plan_reproduction(trace_model("models:/blood@champion", places=Places(tracking=tracking)))
    assert found.trace.model.uri == "models:/blood/1"
    assert steps(found) == ["cells@1", "pretrain base"]
    retrain(monkeypatch, {"base": 1})
    result = reproduce(found, tmp_path / "again")
    assert result.equal
    assert "attachments/more.json was attached afterwards, and not rebuilt" in result.comparisons[-1].differences
    with pytest.raises(ConfigError, match="no MLflow server"):
        trace_model("models:/blood@champion", places=Places())
    with pytest.raises(TrainingError, match="no longer in"):
        trace_model("models:/blood/1", places=Places(str(tmp_path / "elsewhere"), tracking))
    loaded.lineage, loaded.attachments = {}, {}
    save_bundle(loaded, tmp_path / "foreign")
    with pytest.raises(RegistryError, match="was not made by a training run"):
        trace_model(str(tmp_path / "foreign"), places=Places())


def test_one_flipped_bit_of_the_weights_is_a_difference(store: str, tmp_path: Path):
    uri = find_bundle(store, "base").uri
    assert compare_bundles("same", uri, uri).equal
    loaded = load_bundle(Path(uri))
    weights = loaded.model.state_dict()
    name = max(weights, key=lambda key: weights[key].numel())
    before = float(weights[name].flatten()[7])
    weights[name].view(torch.int32).flatten()[7] ^= 1
    save_bundle(loaded, tmp_path / "flipped")
    found = compare_bundles("flipped", uri, str(tmp_path / "flipped"))
    assert not found.equal
    assert found.max_difference == abs(float(weights[name].flatten()[7]) - before) > 0
    save_file({}, tmp_path / "none.safetensors")  # other tensors differ without end
    assert found.differences == ("model.safetensors",)
