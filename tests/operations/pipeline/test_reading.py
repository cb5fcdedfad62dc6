"""A pipeline file is checked as a whole before anything starts; what stages take from each other is wired."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytoray.errors import ConfigError
from cytoray.operations.pipeline.keys import find_key
from cytoray.operations.pipeline.reading import Pipeline, Stage, read_pipeline
from cytoray.operations.pipeline.records import StageKey, StageRecord, record_uri, set_latest
from cytoray.operations.pipeline.tasks import build_task, stage_folder

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs" / "pipeline" / "quickstart.yaml"


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    """The shipped pipeline, with a rollout."""
    monkeypatch.chdir(tmp_path)
    text = (
        QUICKSTART.read_text().replace("  # - name: service", "  - name: service").replace("  #   config", "    config")
    )
    for line in ("corpus", "pretrain", "finetune", "evaluate", "promote", "rollout"):
        text = text.replace(f"../{line}/", f"{ROOT}/configs/{line}/")
    (tmp_path / "pipeline.yaml").write_text(text)
    return read_pipeline(tmp_path / "pipeline.yaml")


def stage_of(pipeline: Pipeline, name: str) -> Stage:
    return next(stage for stage in pipeline.stages if stage.name == name)


def record_of(pipeline: Pipeline, name: str, **result: Any) -> StageRecord:
    """A record as a job would write it."""
    stage = stage_of(pipeline, name)
    settings = {"run": stage.config.run} if hasattr(stage.config, "run") else {}
    key = StageKey(kind=stage.kind, settings=settings, inputs={"made": name})
    return StageRecord(stage=name, key=key, result=result, started="now", seconds=1.0, revision="r")


def test_each_stage_takes_from_the_nearest_that_fits(pipeline: Pipeline):
    assert {stage.name: dict(stage.takes) for stage in pipeline.stages} == {
        "cells": {},
        "pretrain": {"corpus": "cells"},
        "types": {"corpus": "cells", "model": "pretrain"},
        "scores": {"corpus": "cells", "model": "types"},
        "champion": {"model": "types", "scores": "scores"},
        "service": {"model": "champion"},
    }


def test_what_a_stage_takes_is_put_into_its_configuration(pipeline: Pipeline):
    corpus = record_of(pipeline, "cells", corpus="s3://b/corpora/pbmc68k", version=3, manifest_digest="m" * 64)
    first = record_of(pipeline, "pretrain", bundle_digest="d" * 64)
    types = stage_of(pipeline, "types")
    taken = {"corpus": corpus, "model": first}
    key = find_key(types, taken)
    assert key.inputs == {"corpus": "m" * 64, "model": "d" * 64}
    config = build_task(pipeline, types, key, taken).config
    assert config["corpus"] == "pbmc68k@3"
    assert config["initial"] == f"run:pretrain-{first.key.digest[:8]}"
    assert config["run"] == f"finetune-{key.digest[:8]}"
    assert "initial_run" not in config

    scores = record_of(pipeline, "scores", scores={}).model_copy(update={"files": {"s3://b/reports/scores.json": "f"}})
    tuned = record_of(pipeline, "types", bundle_digest="e" * 64)
    champion = stage_of(pipeline, "champion")
    taken = {"model": tuned, "scores": scores}
    promotion = build_task(pipeline, champion, find_key(champion, taken), taken).config
    assert promotion["gate"]["scores"] == "s3://b/reports/scores.json"
    promoted = record_of(pipeline, "champion", model="models:/pbmc68k@champion", version=7, bundle_digest="e" * 64)
    service = stage_of(pipeline, "service")
    rollout = build_task(pipeline, service, find_key(service, {"model": promoted}), {"model": promoted}).config
    assert rollout["model"] == "models:/pbmc68k/7"


@pytest.mark.parametrize(
    ("override", "is_same"),
    [
        ("types.workers.cpus_per_worker=1.0", True),
        ("types.train.keep_checkpoints=5", True),
        ("types.tracking.experiment=other", True),
        ("types.train.num_steps=301", False),
        ("types.train.seed=1", False),
        ("types.run=other", False),
    ],
)
def test_only_what_changes_results_changes_a_key(pipeline: Pipeline, tmp_path: Path, override: str, is_same: bool):
    taken = {
        "corpus": record_of(pipeline, "cells", manifest_digest="m" * 64),
        "model": record_of(pipeline, "pretrain", bundle_digest="d" * 64),
    }
    changed = read_pipeline(tmp_path / "pipeline.yaml", overrides=[override])
    keys = [find_key(stage_of(one, "types"), taken).digest for one in (pipeline, changed)]
    assert (keys[0] == keys[1]) == is_same


def test_a_continued_training_starts_from_the_model_it_made_before_also_after_a_kill(
    tmp_path: Path, pipeline: Pipeline
):
    text = (
        (tmp_path / "pipeline.yaml")
        .read_text()
        .replace("  - name: types\n", "  - name: types\n    retrain: continue\n")
    )
    (tmp_path / "pipeline.yaml").write_text(text)
    continued = read_pipeline(tmp_path / "pipeline.yaml")
    types, folder = stage_of(continued, "types"), stage_folder(continued, stage_of(continued, "types"))
    first = record_of(continued, "pretrain", bundle_digest="d" * 64)

    def task(digest: str) -> tuple[StageKey, dict[str, Any]]:
        corpus = record_of(continued, "cells", corpus="c/pbmc68k", version=1, manifest_digest=digest)
        taken = {"corpus": corpus, "model": first}
        key = find_key(types, taken)
        return key, build_task(continued, types, key, taken).config

    def finish(key: StageKey) -> None:
        record = StageRecord(stage="types", key=key, result={}, started="now", seconds=1.0, revision="r")
        Path(record_uri(folder, key.digest)).write_text(record.model_dump_json())
        set_latest(folder, key.digest)

    key, config = task("one")
    assert config["initial"].startswith("run:pretrain-"), "it has made none"
    finish(key)
    grown, config = task("two")
    before = f"run:finetune-{key.digest[:8]}"
    assert config["initial"] == before
    finish(grown)  # it was killed after this, before the pipeline saw it
    assert task("two")[1]["initial"] == before
    assert task("three")[1]["initial"] == f"run:finetune-{grown.digest[:8]}"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("num_steps: 60", "num_stepz: 60"),
            r"pretrain\.yaml:\d+: train\.num_stepz: unknown key \(did you mean train\.num_steps\?\)",
        ),
        (("kind: promote", "kind: promot"), "kind: expected one of ingest, "),
        (("kind: promote", "kind: serve"), "kind: expected one of ingest, "),
    ],
)
def test_a_mistake_in_a_stages_file_is_named_with_its_line(
    tmp_path: Path, change: tuple[str, str], told: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    names = {
        "corpus": "cells",
        "pretrain": "pretrain",
        "finetune": "types",
        "evaluate": "scores",
        "promote": "champion",
    }
    text = QUICKSTART.read_text()
    for folder in names:
        source = (ROOT / "configs" / folder / "quickstart.yaml").read_text().replace(*change)
        (tmp_path / f"{folder}.yaml").write_text(source.replace("../model/", f"{ROOT}/configs/model/"))
        text = text.replace(f"../{folder}/quickstart.yaml", f"{folder}.yaml")
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_pipeline(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("stage", "more", "told"),
    [
        ("champion", {"model": "nobody"}, "model is 'nobody', which is not a stage before it"),
        ("champion", {"model": "cells"}, "the stage 'cells' gives nothing that this one takes"),
        ("cells", {"retrain": "continue"}, "only fine-tuning can be continued"),
        ("cells", {"set": ["checks.min_gene=3"]}, r"--set checks\.min_gene: checks\.min_gene: unknown key"),
        ("cells", {"retrian": "new"}, "unknown key"),
    ],
)
def test_a_mistake_in_the_pipeline_itself_is_named(write: Callable[..., Path], stage: str, more: Any, told: str):
    with pytest.raises(ConfigError, match=told):
        read_pipeline(write(**{stage: more}))


def test_overrides_of_a_stage_and_of_the_pipeline(write: Callable[..., Path]):
    changed = read_pipeline(write(), overrides=["cells.corpus=other", "num_cpus=3"])
    assert changed.config.num_cpus == 3
    assert json.loads(changed.stages[0].config.model_dump_json())["corpus"] == "other"
