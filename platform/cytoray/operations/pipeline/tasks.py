"""The task of a stage: its configuration with what it takes from other stages in its place."""

from __future__ import annotations

from typing import Any

from cytoray import storage
from cytoray.config import Config
from cytoray.corpus.config import IngestConfig
from cytoray.errors import ConflictError
from cytoray.operations.pipeline.keys import Taken
from cytoray.operations.pipeline.reading import CORPUS_KEYS, Pipeline, Stage
from cytoray.operations.pipeline.records import StageKey, StageRecord, StageTask, find_latest
from cytoray.runs import run_folder
from cytoray.stages.config import PromoteConfig
from cytoray.tasks.assessing import AssessConfig
from cytoray.tasks.config import FromModelConfig
from cytoray.training.config import RunConfig

KEY_LENGTH = 8  # characters of a key in the name of a run


def stage_folder(pipeline: Pipeline, stage: Stage) -> str:
    """Return the folder of a stage's records."""
    return storage.join(pipeline.folder, "stages", stage.name)


def build_task(pipeline: Pipeline, stage: Stage, key: StageKey, taken: Taken) -> StageTask:
    """Build what a job needs to do a stage.

    A training run is called after its key, so that one with other cells or settings is another run; a stage with
    `retrain: continue` starts from the model it has made before, which is decided once for a key.
    """
    folder = stage_folder(pipeline, stage)
    reports = storage.join(pipeline.folder, "reports", stage.name, key.digest[:16])
    config, changes = stage.config, _taken_values(stage, taken)
    if isinstance(config, IngestConfig):
        changes["append"] = True
    if isinstance(config, RunConfig):
        changes["run"] = f"{config.run}-{key.digest[:KEY_LENGTH]}"
    if isinstance(config, FromModelConfig) and "model" not in taken:
        changes["initial"] = config.initial
    if stage.is_continued and (before := _model_before(folder, key)) is not None:
        changes["initial"] = before
    if isinstance(config, AssessConfig):
        changes["out"] = reports
    settings = _as_set(stage.kind, config.model_copy(update=changes))
    return StageTask(
        stage=stage.name,
        folder=folder,
        reports=reports,
        key=key,
        config=settings,
        num_cpus=pipeline.config.num_cpus,
        patience_s=pipeline.config.patience_s,
    )


def _as_set(kind: str, config: Config) -> dict[str, Any]:
    """Return the keys that are set, as JSON data: a tokenizer's others may be inherited from a model."""
    settings = config.model_dump(mode="json", exclude_unset=True)
    if settings.get("initial") is not None:
        settings.pop("initial_run", None)
    return {"kind": kind} | settings


def _taken_values(stage: Stage, taken: Taken) -> dict[str, Any]:
    """Return the keys of the configuration that name what other stages have made."""
    changes: dict[str, Any] = {}
    config = stage.config
    if "corpus" in taken:
        found = taken["corpus"].result
        name = f"{found['corpus'].rstrip('/').rpartition('/')[2]}@{found['version']}"
        changes |= {key: name for key in CORPUS_KEYS if key in type(config).model_fields}
    if "model" in taken:
        changes[str(stage.model_key)] = model_uri(taken["model"])
    if isinstance(config, PromoteConfig) and config.gate is not None:
        scores = None
        if "scores" in taken:
            scores = next(uri for uri in taken["scores"].files if uri.endswith("/scores.json"))
        elif "model" in taken:
            scores = storage.join(run_folder(config.store, run_name(taken["model"])), "card", "card.json")
        if scores is not None:
            changes["gate"] = config.gate.model_copy(update={"scores": scores})
    return changes


def run_name(record: StageRecord) -> str:
    """Return the name of the run of a stage that trained."""
    return f"{record.key.settings['run']}-{record.key.digest[:KEY_LENGTH]}"


def model_uri(record: StageRecord) -> str:
    """Return the URI of the model that a stage has made: a run's, or a registered version's."""
    if record.key.kind == "promote":
        return f"{record.result['model'].partition('@')[0]}/{record.result['version']}"
    return f"run:{run_name(record)}"


def _model_before(folder: str, key: StageKey) -> str | None:
    """Return the model that a stage made before this key, as it was when the key was first met; None if it made none.

    A stage that was killed and is done again starts from the same model.
    """
    uri = storage.join(folder, f"{key.digest}.start")
    noted = storage.find_bytes(uri)
    if noted is None:
        latest = find_latest(folder)
        before = "" if latest is None or latest.key.digest == key.digest else model_uri(latest)
        try:
            storage.put_if_absent(uri, before.encode())
            noted = before.encode()
        except ConflictError:  # another process was faster
            noted = storage.read_bytes(uri)
    return noted.decode() or None
