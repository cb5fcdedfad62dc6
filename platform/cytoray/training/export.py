"""Export a finished run's checkpoint as a bundle in the store, recorded in the run's ``BUNDLE.json``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cytoray
from cytoray import cluster, provenance, storage
from cytoray.failpoints import failpoint
from cytoray.model.bundle import DIGESTS, Conditions, ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.gene_rows import merge_rows
from cytoray.model.transformer import ScGPT
from cytoray.runs import BundleRecord, Which, find_bundle, record_uri, run_folder
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import RunConfig
from cytoray.training.result import TrainingResult


@dataclass(frozen=True)
class ExportSpec:
    """The parts of a run's bundle that its checkpoints do not have."""

    model: ModelConfig
    vocabulary: GeneVocabulary
    labels: tuple[str, ...] = ()
    parent: str = ""  # digest of the model that the run started from
    conditions: Conditions | None = None
    convert: Callable[[ModelBundle], ModelBundle] | None = None  # from how the model was trained to how it answers
    complete: Callable[[ModelBundle], ModelBundle] | None = None  # adds parts to the bundle of the best checkpoint


def export_bundles(config: RunConfig, result: TrainingResult, spec: ExportSpec) -> BundleRecord:
    """Write the bundles of a run's best and last checkpoint, each in its own Ray task; returns the best one's.

    Bundles that exist already are kept, and need no Ray.
    """
    whiches: tuple[Which, ...] = ("best", "last")
    missing = [which for which in whiches if not is_exported(config, result, which=which)]
    if missing:
        cluster.start()
        import ray  # here: finding a bundle needs no Ray

        exporting: Any = ray.remote(num_cpus=0)(export_bundle)
        ray.get([exporting.remote(config, result, spec, which=which) for which in missing])
    return find_bundle(config.store, config.run)


def export_bundle(
    config: RunConfig, result: TrainingResult, spec: ExportSpec, *, which: Which = "best"
) -> BundleRecord:
    """Write the bundle of a run's best or last checkpoint, unless it exists already.

    It contains the averaged weights if the run keeps them, otherwise the fp32 weights.
    """
    if is_exported(config, result, which=which):
        return find_bundle(config.store, config.run, which=which)
    checkpoint = result.best if which == "best" else result.checkpoint
    network = ScGPT(spec.model, pad_id=spec.vocabulary.pad_id)
    network.load_state_dict(merge_rows(checkpoint.load_best_weights()))
    lineage = {
        "run": config.run,
        "corpus": config.corpus,
        "corpus_manifest_digest": result.manifest_digest,
        "config_digest": result.config_digest,
        "git_revision": provenance.git_revision(),
        "code_version": cytoray.__version__,
        "checkpoint": checkpoint.uri,
        "step": str(checkpoint.state.step),
        "parent_bundle_digest": spec.parent,
    }
    bundle = ModelBundle(network, spec.vocabulary, config.tokenizer, spec.labels, lineage, conditions=spec.conditions)
    if spec.convert is not None:
        bundle = spec.convert(bundle)
    if spec.complete is not None and which == "best":
        bundle = spec.complete(bundle)
    with tempfile.TemporaryDirectory(prefix="cytoray-bundle-") as scratch:
        digest = save_bundle(bundle, Path(scratch) / "bundle")
        target = storage.join(run_folder(config.store, config.run), f"bundle-{digest[:16]}")
        failpoint("export.before_bundle")
        storage.upload_folder(Path(scratch) / "bundle", target, last=DIGESTS)
        failpoint("export.after_bundle")
    record = BundleRecord(uri=target, digest=digest, lineage=lineage, mlflow_run_id=result.mlflow_run_id)
    storage.write_bytes(record_uri(config.store, config.run, which=which), record.model_dump_json().encode())
    failpoint("export.after_record")
    return record


def is_exported(config: RunConfig, result: TrainingResult, *, which: Which = "best") -> bool:
    """Whether the bundle of this checkpoint exists; an extended run also has older ones."""
    if not storage.exists(record_uri(config.store, config.run, which=which)):
        return False
    checkpoint = result.best if which == "best" else result.checkpoint
    return find_bundle(config.store, config.run, which=which).lineage["checkpoint"] == checkpoint.uri
