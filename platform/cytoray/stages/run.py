"""Run one stage: each function combines calls of the library and returns the result with its location."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cytoray import progress, provenance, storage
from cytoray.corpus.config import IngestConfig
from cytoray.corpus.ingest import ingest, plan_in_tasks
from cytoray.corpus.reading import read_labelled_cells
from cytoray.errors import DigestError
from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.public_checkpoint import load_public_checkpoint
from cytoray.registry.aliases import CANDIDATE
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.models import Lineage, register, resolve
from cytoray.registry.promotion import promote_version
from cytoray.serving.offline import EmbedResult, EmbedTask, embed_sources
from cytoray.serving.schemas import ModelInfo
from cytoray.stages.config import EmbedConfig, EvaluateConfig, ModelStageConfig, PromoteConfig
from cytoray.tasks import annotation
from cytoray.tasks.annotation import AnnotationReport, Baseline, finetune
from cytoray.tasks.pretraining import judge_pretraining
from cytoray.training.config import FinetuneConfig, PretrainConfig
from cytoray.training.export import find_bundle
from cytoray.training.pretraining import pretrain
from cytoray.training.report import save_card

__all__ = ["SUMMARIES", "embed", "evaluate", "finetune", "ingest", "load_model", "pretrain", "promote"]
RUN, REGISTERED = "run:", "models:/"


def evaluate(config: EvaluateConfig) -> AnnotationReport:
    """Score a model on held-out cells beside the baselines, and draw plots."""
    bundle, _ = load_model(config)
    held_out = read_labelled_cells(config.data, config.label_key, vocabulary=bundle.vocabulary)
    baseline = Baseline(config.store, config.baseline_corpus, config.label_key)
    return annotation.evaluate(bundle, held_out, baseline, folder=Path(config.folder), formats=config.plots)


def promote(config: PromoteConfig) -> RegisteredVersion:
    """Register a run's bundle as a model version and, if it passes the gate, move the alias to it."""
    if not config.model.startswith(RUN):
        _, version = load_model(config)
        lineage = Lineage(parent_version=f"{version.name}/{version.version}")
    else:
        record = find_bundle(config.store, config.model.removeprefix(RUN))
        lineage = Lineage(
            run_id=record.mlflow_run_id,
            corpus_manifest_digest=record.lineage["corpus_manifest_digest"],
            config_digest=record.lineage["config_digest"],
            git_revision=provenance.git_revision(),
            parent_version=record.lineage["parent_bundle_digest"] or None,
        )
    with tempfile.TemporaryDirectory(prefix="cytoray-promote-") as scratch:
        folder = _fetch(config, Path(scratch))
        alias = CANDIDATE if config.alias == CANDIDATE else None
        registered = register(folder, name=config.name, tracking=config.tracking, lineage=lineage, alias=alias)
    if alias == CANDIDATE:
        return registered
    return promote_version(registered, tracking=config.tracking, gate=config.gate, alias=config.alias)


def embed(config: EmbedConfig, *, advance: progress.Advance = progress.silent) -> EmbedResult:
    """Embed and annotate the cells of files, and write parquet files."""
    with tempfile.TemporaryDirectory(prefix="cytoray-embed-") as scratch:
        folder, model = _fetch_described(config, Path(scratch))
        # A location that every worker can read, wherever the model comes from.
        bundle = storage.join(config.store or config.out, "bundles", model.digest)
        if not storage.exists(storage.join(bundle, "digests.json")):
            storage.upload_folder(folder, bundle)
    task = EmbedTask(
        sources=config.data,
        bundle=bundle,
        model=model,
        out=config.out,
        rows_per_file=config.rows_per_task,
        num_actors=config.num_actors,
        num_gpus=config.num_gpus,
        h5ad=config.h5ad,
    )
    return embed_sources(task, advance=advance)


def load_model(config: ModelStageConfig) -> tuple[ModelBundle, ModelInfo]:
    """Load and verify the bundle of ``config.model``; returns it with its name, version and digest."""
    with tempfile.TemporaryDirectory(prefix="cytoray-model-") as scratch:
        folder, model = _fetch_described(config, Path(scratch))
        return load_bundle(folder), model


def _fetch_described(config: ModelStageConfig | EmbedConfig, scratch: Path) -> tuple[Path, ModelInfo]:
    """Return a local folder with the bundle of ``config.model``, and its name, version and digest."""
    if config.model.startswith(REGISTERED):
        assert config.tracking is not None, "validated"
        _, version = resolve(config.model, tracking=config.tracking, cache_folder=Path(config.cache_folder))
        folder = Path(config.cache_folder).expanduser() / version.digest
        return folder, ModelInfo(name=version.name, version=str(version.version), digest=version.digest)
    folder = _fetch(config, scratch)
    digest = hashlib.sha256((folder / "digests.json").read_bytes()).hexdigest()
    return folder, ModelInfo(name=config.model, version="unregistered", digest=digest)


def _fetch(config: ModelStageConfig | EmbedConfig, scratch: Path) -> Path:
    """Return a local folder with a bundle: of a run, of a folder, or converted from a public checkpoint."""
    if config.model.startswith(REGISTERED):
        return _fetch_described(config, scratch)[0]
    uri, expected = config.model, None
    if config.model.startswith(RUN):
        assert config.store is not None, "validated"
        record = find_bundle(config.store, config.model.removeprefix(RUN))
        uri, expected = record.uri, record.digest
    storage.download_folder(uri, scratch / "bundle")
    if (scratch / "bundle" / "best_model.pt").exists():
        save_bundle(load_public_checkpoint(scratch / "bundle").to_bundle(), scratch / "imported")
        return scratch / "imported"
    load_bundle(scratch / "bundle")  # verifies it
    seen = hashlib.sha256((scratch / "bundle" / "digests.json").read_bytes()).hexdigest()
    if expected is not None and seen != expected:
        raise DigestError(
            f"{uri}: this is not the bundle that the run exported.",
            remedy="Export it again from the run's checkpoint.",
            uri=uri,
            expected=expected,
            seen=seen,
        )
    return scratch / "bundle"


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


def _summarise_pretrain(config: PretrainConfig) -> dict[str, Any]:
    with progress.stage("pretrain", total=config.train.num_steps, unit="steps") as advance:
        result, bundle = pretrain(config, advance=advance)
    scores = judge_pretraining(config, bundle) if config.validation is not None else {}
    card = save_card(config, result, bundle=bundle, scores=scores)
    return result.summary() | {
        "bundle": bundle.uri,
        "bundle_digest": bundle.digest,
        "held_out": {name: dict(row) for name, row in scores.items()},
        "card": card,
    }


def _summarise_finetune(config: FinetuneConfig) -> dict[str, Any]:
    with progress.stage("finetune", total=config.train.num_steps, unit="steps") as advance:
        result, bundle = finetune(config, advance=advance)
    card = save_card(config, result, bundle=bundle, stability=annotation.held_out_stability(config, bundle))
    return result.summary() | {"bundle": bundle.uri, "bundle_digest": bundle.digest, "card": card}


def _summarise_evaluate(config: EvaluateConfig) -> dict[str, Any]:
    report = evaluate(config)
    return {
        "scores": {name: scores.as_dict() for name, scores in report.scores.items()},
        "files": {name: str(path) for name, path in report.files.items()},
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


def _summarise_embed(config: EmbedConfig) -> dict[str, Any]:
    with progress.stage("embed", total=0, unit="cells") as advance:
        result = embed(config, advance=advance)
    return {
        "out": config.out,
        "num_cells": result.num_cells,
        "num_empty": result.num_empty,
        "files": result.num_files,
        "h5ad": list(result.h5ad),
        "skipped": result.skipped,
    }


#: For jobs and commands, by ``kind`` of configuration: the stage, and a function that selects the result to print.
SUMMARIES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "ingest": _summarise_ingest,
    "pretrain": _summarise_pretrain,
    "finetune": _summarise_finetune,
    "evaluate": _summarise_evaluate,
    "promote": _summarise_promote,
    "embed": _summarise_embed,
}
