"""Scenarios of the registry and its readers: register and promote, record a report, swap a served version."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import yaml
from crash_driver import Scenario

from cytoray.evaluation.assessment import Assessment, MetricRow, write_report
from cytoray.model.bundle import load_bundle
from cytoray.registry.assessments import record_assessment
from cytoray.registry.gate import GateConfig
from cytoray.registry.models import find_model, list_versions, register, resolve
from cytoray.registry.pinning import pin_model
from cytoray.registry.promotion import promote_version
from cytoray.tracking import TrackingConfig
from cytoray.tracking.server import connect

NAME, ALIAS = "tiny", "models:/tiny@champion"


def tracking_of(folder: Path) -> TrackingConfig:
    """MLflow's database of a scenario."""
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", journal_folder=str(folder / "journal"))


def _prepare(folder: Path, shared: Path) -> TrackingConfig:
    if not (folder / "mlflow.db").exists():  # tables are made once: that takes seconds
        shutil.copy(shared / "mlflow.db", folder / "mlflow.db.part")
        os.replace(folder / "mlflow.db.part", folder / "mlflow.db")
    return tracking_of(folder)


def run_promotion(folder: Path, shared: Path) -> Any:
    """Promote two versions one after the other through a gate, and record a report on the second."""
    tracking = _prepare(folder, shared)
    for number in (1, 2):
        scores = folder / f"scores-{number}.json"
        scores.write_text(json.dumps({"cytoray": {"macro_f1": 0.5 + number / 10}, "majority class": {"macro_f1": 0.1}}))
        if number == 1 and any(version.version == 2 for version in _versions(tracking)):
            continue  # it was promoted before; promoting it again would be a rollback
        version = register(shared / f"bundle-{number}", name=NAME, tracking=tracking)
        gate = GateConfig(scores=str(scores), metric="macro_f1", beats=("majority class",), not_below_champion=True)
        version = promote_version(version, tracking=tracking, gate=gate)
    found = Assessment(
        task="annotation", data={"uri": "d.h5ad", "digest": "d" * 64, "num_cells": 9}, split="5 folds of cells",
        metrics={"macro_f1": MetricRow(0.1, 0.8, 0.5, 0.9, None, None, "win")}, chosen={"blend": 5}, why=("so",),
        seeds=(0,), seconds=1.0, model=ALIAS, model_digest=version.digest,
    )  # fmt: skip
    write_report(found, str(folder / "report"), page=b"<html></html>")
    recorded = record_assessment(version, str(folder / "report"), tracking=tracking)
    assert len(recorded.assessments) == 1
    return _state(tracking)


def _versions(tracking: TrackingConfig) -> list[Any]:
    client = connect(tracking.uri)
    if NAME not in [model.name for model in client.search_registered_models()]:
        return []
    return list_versions(NAME, tracking=tracking)


def _state(tracking: TrackingConfig) -> Any:
    """Versions with digests, aliases and tags, without ids of runs and locations."""
    client = connect(tracking.uri)
    moving = ("cytoray.run_id", "cytoray.bundle_bytes")
    found = []
    for version in _versions(tracking):
        tags = client.get_model_version(NAME, str(version.version)).tags
        kept = {key: value for key, value in tags.items() if key.startswith("cytoray.") and key not in moving}
        found.append([version.version, version.digest, sorted(version.aliases), kept])
    return found


def look_at_registry(folder: Path) -> None:
    """Each version can be loaded; there is a champion as soon as one was promoted, and a way back from the second."""
    if not (folder / "mlflow.db").exists():
        return
    tracking = tracking_of(folder)
    versions = _versions(tracking)
    for version in versions:
        uri = f"models:/{NAME}/{version.version}"
        bundle, _ = resolve(uri, tracking=tracking, cache_folder=folder / "look")
        assert bundle.digest == version.digest
    holders = {alias: version.version for version in versions for alias in version.aliases}
    assert len(versions) <= 2
    if len(versions) == 2:
        assert holders["champion"] in (1, 2), "there was a champion before the second version"
        if holders["champion"] == 2:
            tags = connect(tracking.uri).get_model_version(NAME, "2").tags
            assert holders.get("previous") == 1 or tags["cytoray.replaced_version"] == "1", "no way back"
            assert tags["cytoray.gate.macro_f1"] == "0.7", "a champion has the scores that it was promoted with"


def tidy_registry(folder: Path) -> None:
    """Every uploaded bundle belongs to a version."""
    tracking = tracking_of(folder)
    stored = {path.name for path in (folder / "artifacts").rglob("bundle-*") if path.is_dir()}
    assert stored == {f"bundle-{version.digest[:16]}" for version in _versions(tracking)}
    assert find_model(connect(tracking.uri), NAME).aliases.get("candidate") is None


def run_swap(folder: Path, shared: Path) -> Any:
    """Serve the champion, promote another version, look at the alias, and answer with it."""
    from cytoray.serving.config import AppArgs, Limits
    from cytoray.serving.hosting.loading import load_service
    from cytoray.serving.rollout.building import build_slot
    from cytoray.serving.rollout.config import RolloutConfig

    tracking = _prepare(folder, shared)
    args = AppArgs(
        model_uri=ALIAS, tracking=tracking, cache_folder=str(folder / "cache"), limits=Limits(),
        rollout=RolloutConfig(poll_s=1000.0),
    )  # fmt: skip
    if len(_versions(tracking)) < 2:
        register(shared / "bundle-1", name=NAME, tracking=tracking, alias="champion")
    slot = build_slot(args, pin_model(ALIAS, sources=args.sources()), load=load_service)
    try:
        register(shared / "bundle-2", name=NAME, tracking=tracking, alias="champion")
        assert slot.follower is not None
        slot.follower.check()
        with slot.hold() as service:
            served = service.model
            label = service.labels[0]
        assert slot.status().degraded is None
    finally:
        asyncio.run(slot.close())
    return [served.version, served.digest, label]


def look_at_cache(folder: Path) -> None:
    """What a service would start with is whole: each bundle in the cache, and the version that served last."""
    if not (folder / "cache").exists():
        return
    for cached in (folder / "cache").iterdir():
        if len(cached.name) == 64:
            assert load_bundle(cached).digest == cached.name
    for noted in (folder / "cache" / "last-good").glob("*.json"):
        assert (folder / "cache" / json.loads(noted.read_text())["digest"]).is_dir()


def tidy_cache(folder: Path) -> None:
    """A download of a process that was killed is removed after a day."""
    cache, long_ago = folder / "cache", time.time() - 2 * 24 * 3600
    for draft in cache.glob(".*.*"):
        for path in (*draft.rglob("*"), draft):
            os.utime(path, (long_ago, long_ago))
    tracking = tracking_of(folder)
    shutil.rmtree(cache / _versions(tracking)[0].digest, ignore_errors=True)  # so that it is fetched once more
    resolve(f"models:/{NAME}/1", tracking=tracking, cache_folder=cache)
    assert not list(cache.glob(".*")), list(cache.glob(".*"))


def pipeline_file(folder: Path, shared: Path) -> Path:
    """A pipeline without training, which takes seconds: ingest, evaluate a bundle, promote it through its gate."""
    tracking = {"uri": f"sqlite:///{folder}/mlflow.db", "journal_folder": str(folder / "journal")}
    model, cache = str(shared / "bundle-2"), str(folder / "cache")
    evaluate = {
        "kind": "evaluate", "model": model, "label_key": "cell_type", "baseline_corpus": "cells",
        "data": {"uri": str(shared / "held-out" / "part-000.h5ad")}, "folder": str(folder / "report"),
        "cache_folder": cache,
    }  # fmt: skip
    gate = {"scores": "set by the pipeline", "metric": "macro_f1", "at_least": 0.0}
    ingest = {"kind": "ingest", "corpus": "cells", "sources": [{"uri": f"{shared / 'sources'}/"}]}
    promote = {"kind": "promote", "model": model, "name": NAME, "gate": gate, "cache_folder": cache}
    stages = [
        {"name": "cells", "config": ingest}, {"name": "scores", "config": evaluate},
        {"name": "champion", "config": promote, "scores": "scores"},
    ]  # fmt: skip
    document = {"kind": "pipeline", "name": "tiny", "store": str(folder / "store"), "tracking": tracking}
    path = folder / "pipeline.yml"
    path.write_text(yaml.safe_dump({**document, "stages": stages}))
    return path


def run_pipeline_file(folder: Path, shared: Path) -> Any:
    """Run the pipeline as a command would, each stage in a process of its own."""
    from cytoray.operations.pipeline.reading import read_pipeline
    from cytoray.operations.pipeline.runners import LocalRunner
    from cytoray.operations.pipeline.running import run_pipeline

    _prepare(folder, shared)
    done = run_pipeline(read_pipeline(pipeline_file(folder, shared)), LocalRunner())
    results = {plan.stage.name: plan.record.result for plan in done.plans if plan.record is not None}
    scores = results["scores"]["scores"]["cytoray"]["macro_f1"]
    champion = {key: results["champion"][key] for key in ("model", "version", "bundle_digest", "aliases")}
    return [results["cells"]["content_digest"], scores, champion, _state(tracking_of(folder))]


def look_at_pipeline(folder: Path) -> None:
    """What is recorded as done is there: corpus, reports, versions."""
    from cytoray.operations.pipeline.records import StageRecord

    for path in (folder / "store" / "pipelines").rglob("stages/*/*.json"):
        if len(path.stem) == 64:
            record = StageRecord.model_validate_json(path.read_text())
            assert all(Path(uri).is_file() for uri in record.files)
    if (folder / "store" / "corpora").exists():
        from crash_stores import look_at_corpus

        look_at_corpus(folder)
    look_at_registry(folder)


def tidy_pipeline(folder: Path) -> None:
    """No temporary files are left, and every uploaded bundle belongs to a version; a rerun does nothing."""
    from cytoray.operations.pipeline.reading import read_pipeline
    from cytoray.operations.pipeline.runners import LocalRunner
    from cytoray.operations.pipeline.running import run_pipeline

    assert run_pipeline(read_pipeline(folder / "pipeline.yml"), LocalRunner()).ran == ()
    assert not list((folder / "store" / "pipelines").rglob("*.part"))
    assert not list((folder / "store" / "pipelines").rglob("*.error.json"))
    tidy_registry(folder)


SCENARIOS = {
    "promote": Scenario(run_promotion, look_at_registry, tidy_registry, ("register", "promote", "record")),
    "swap": Scenario(run_swap, look_at_cache, tidy_cache, ("swap",)),
    "pipeline": Scenario(run_pipeline_file, look_at_pipeline, tidy_pipeline, ("pipeline",)),
}
