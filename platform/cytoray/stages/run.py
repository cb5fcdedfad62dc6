"""Run one stage: each function combines calls of the library and returns the result with its location."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cytoray import progress, provenance, storage
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.ingest import ingest, plan_in_tasks
from cytoray.registry.aliases import CANDIDATE
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.models import Lineage, register
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.registry.promotion import promote_version
from cytoray.serving.offline import OfflineResult, OfflineTask, answer_sources, offline_model
from cytoray.stages.assess import PREFIX, run_assessment
from cytoray.stages.config import OfflineConfig, PromoteConfig
from cytoray.stages.networks import run_inference, summarise
from cytoray.stages.rollout import run_rollout
from cytoray.tasks import task_offline, task_stages
from cytoray.tasks.config import ModelStageConfig
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.networks.config import InferNetworksConfig

__all__ = ["answer_offline", "find_stage", "ingest", "open_configured", "promote"]


def promote(config: PromoteConfig) -> RegisteredVersion:
    """A run's bundle to a registered model version that, if it passes the gate, carries the alias."""
    opened = open_configured(config)
    lineage = Lineage(parent_version=f"{opened.name}/{opened.version}")
    if (record := opened.record) is not None:
        lineage = Lineage(
            run_id=record.mlflow_run_id,
            corpus_manifest_digest=record.lineage["corpus_manifest_digest"],
            config_digest=record.lineage["config_digest"],
            git_revision=provenance.git_revision(),
            parent_version=record.lineage["parent_bundle_digest"] or None,
        )
    alias = CANDIDATE if config.alias == CANDIDATE else None
    with opened.as_folder() as folder:
        registered = register(folder, name=config.name, tracking=config.tracking, lineage=lineage, alias=alias)
    if alias == CANDIDATE:
        return registered
    return promote_version(
        registered, tracking=config.tracking, gate=config.gate, assessments=config.assessments, alias=config.alias
    )


def answer_offline(config: OfflineConfig, *, advance: progress.Advance = progress.silent) -> OfflineResult:
    """Cells of files to parquet files of the answers of an endpoint; RequestError if the model cannot give them."""
    opened = open_configured(config)
    model = ModelInfo(name=opened.name, version=opened.version, digest=opened.digest)
    task_endpoint = task_offline()[config.kind].endpoint
    assert task_endpoint is not None, "a task with offline answers has an endpoint"
    endpoint = task_endpoint.load()
    endpoint.check(offline_model(opened.bundle, model))
    # A location that every worker can read, wherever the model comes from.
    bundle = storage.join(config.store or config.out, "bundles", opened.digest)
    opened.store_in(bundle)
    task = OfflineTask(
        sources=config.data,
        bundle=bundle,
        model=model,
        out=config.out,
        endpoint=endpoint.name,
        rows_per_file=config.rows_per_task,
        num_actors=config.num_actors,
        num_gpus=config.num_gpus,
        h5ad=config.h5ad,
        cache_folder=config.cache_folder,
    )
    return answer_sources(task, advance=advance)


def open_configured(config: ModelStageConfig | OfflineConfig) -> OpenedModel:
    """Open the model that a stage's configuration names."""
    return open_model(config.model, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder)


def _summarise_ingest(config: IngestConfig) -> dict[str, Any]:
    plan = plan_in_tasks(config)
    with progress.stage("ingest", total=plan.num_cells, unit="cells") as advance:
        result = ingest(config, plan=plan, advance=advance)
    manifest = result.manifest
    report_key = manifest.increments[-1].report_key
    return {
        "corpus": result.uri,
        "version": manifest.version,
        "manifest_digest": manifest.digest,
        "content_digest": manifest.content_digest,
        "num_cells": manifest.num_cells,
        "num_shards": len(manifest.shards),
        "num_bytes": manifest.num_bytes,
        "quarantined": [record.uri for record in manifest.quarantined],
        "report": storage.join(result.uri, report_key, "report.html") if report_key else None,
        "skipped": result.skipped,
    }


def _summarise_promote(config: PromoteConfig) -> dict[str, Any]:
    version = promote(config)
    return {
        "model": f"models:/{version.name}@{config.alias}",
        "version": version.version,
        "aliases": list(version.aliases),
        "bundle_digest": version.digest,
        "source": version.source_uri,
        "mlflow_run_id": version.run_id,
    }


def _summarise_offline(config: OfflineConfig) -> dict[str, Any]:
    with progress.stage(config.kind, total=0, unit="cells") as advance:
        result = answer_offline(config, advance=advance)
    return {
        "out": config.out,
        "num_cells": result.num_cells,
        "num_empty": result.num_empty,
        "files": result.num_files,
        "h5ad": list(result.h5ad),
        "warnings": list(result.warnings),
        "skipped": result.skipped,
    }


def _summarise_inference(config: InferNetworksConfig) -> dict[str, Any]:
    return summarise(run_inference(config), config)


_OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "ingest": _summarise_ingest,
    "infer-networks": _summarise_inference,
    "promote": _summarise_promote,
    "rollout": run_rollout,
}


def find_stage(kind: str) -> Callable[[Any], dict[str, Any]]:
    """Return the function that runs the stage ``kind`` with its configuration and returns the result to print."""
    if kind.startswith(PREFIX):
        return lambda config: run_assessment(kind.removeprefix(PREFIX), config).assessment.as_dict()
    if kind in task_offline():
        return _summarise_offline
    return _OTHERS[kind] if kind in _OTHERS else task_stages()[kind].run.load()
