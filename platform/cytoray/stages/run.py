"""Stages that use models: each function combines calls of the library and returns the result with its location."""

from __future__ import annotations

from typing import Any

from cytoray import progress, provenance, storage
from cytoray.registry.aliases import CANDIDATE
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.models import Lineage, register
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.registry.promotion import promote_version
from cytoray.serving.offline import OfflineResult, OfflineTask, answer_sources, offline_model
from cytoray.stages.config import OfflineConfig, PromoteConfig
from cytoray.stages.networks import run_inference, summarise
from cytoray.tasks import task_offline
from cytoray.tasks.config import ModelStageConfig
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.networks.config import InferNetworksConfig


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


def summarise_promote(config: PromoteConfig) -> dict[str, Any]:
    """Promote, and return the result to print."""
    version = promote(config)
    return {
        "model": f"models:/{version.name}@{config.alias}",
        "version": version.version,
        "aliases": list(version.aliases),
        "bundle_digest": version.digest,
        "source": version.source_uri,
        "mlflow_run_id": version.run_id,
    }


def summarise_offline(config: OfflineConfig) -> dict[str, Any]:
    """Answer offline, and return the result to print."""
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


def summarise_inference(config: InferNetworksConfig) -> dict[str, Any]:
    """Infer networks, and return the result to print."""
    return summarise(run_inference(config), config)
