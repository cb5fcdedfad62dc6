"""Stores with runs that were never trained: real records, checkpoints and bundles, with weights drawn from a seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cytoray.corpus.config import IngestConfig
from cytoray.corpus.ingest import ingest
from cytoray.corpus.manifest import CorpusManifest, load_manifest
from cytoray.model.transformer import ScGPT
from cytoray.runs import Done, find_bundle
from cytoray.tasks.annotation.config import FinetuneConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.checkpoint import TrainerState, checkpoints_uri, save_checkpoint
from cytoray.training.config import PretrainConfig, RunConfig
from cytoray.training.export import ExportSpec, export_bundle
from cytoray.training.hardware import package_versions
from cytoray.training.record import claim_run
from cytoray.training.result import find_result, save_done

LABELS = ("B", "T")
SHAPE = {"width": 8, "num_heads": 2, "feedforward_width": 8, "num_layers": 1, "dropout": 0.0}


def make_corpus(store: str, sources: list[dict[str, Any]], *, append: bool = False, **others: Any) -> CorpusManifest:
    """Ingest files as the corpus ``cells``."""
    values = {"store": store, "corpus": "cells", "sources": sources, "append": append, **others}
    return ingest(IngestConfig.model_validate_json(json.dumps(values))).manifest


def _values(store: str, tracking: Path, run: str, num_steps: int) -> dict[str, Any]:
    return {
        "store": store,
        "run": run,
        "corpus": "cells",
        "train": {"num_steps": num_steps, "cells_per_step": 16},
        "tracking": {"uri": f"sqlite:///{tracking}/mlflow.db", "journal_folder": f"{tracking}/journal"},
    }


def pretrain_config(
    store: str, tracking: Path, *, run: str = "base", num_steps: int = 6, **others: Any
) -> PretrainConfig:
    """Configuration of a small pretraining."""
    values = _values(store, tracking, run, num_steps) | {"model": SHAPE} | others
    return PretrainConfig.model_validate_json(json.dumps(values))


def finetune_config(
    store: str, tracking: Path, *, run: str = "tuned", num_steps: int = 4, **others: Any
) -> FinetuneConfig:
    """Configuration of a small fine-tuning of the run ``base``."""
    values = _values(store, tracking, run, num_steps) | {"label_key": "kind", "initial": "run:base"} | others
    return FinetuneConfig.model_validate_json(json.dumps(values))


def finish_run(
    config: RunConfig, *, seed: int = 0, hardware: dict[str, str] | None = None, error: float | None = None
) -> str:
    """Write what a finished run leaves in its store, with weights of ``seed``; returns the digest of its bundle."""
    manifest = load_manifest(config.store, config.corpus)
    initial = getattr(config, "initial", None)
    parent = find_bundle(config.store, initial.removeprefix("run:")).digest if initial else ""
    claim_run(config, manifest.digest, initial_digest=parent)
    vocabulary = GeneVocabulary.load_default()
    labels = LABELS if initial else ()
    shape = PretrainConfig.model_fields["model"].default.model_copy(update=SHAPE)
    model = shape.build(vocabulary_size=vocabulary.size, num_labels=len(labels))
    torch.manual_seed(seed)
    weights = ScGPT(model, pad_id=vocabulary.pad_id).state_dict()
    validation = () if error is None else ({"step": float(config.train.num_steps), "masked": error},)
    state = TrainerState(
        step=config.train.num_steps,
        manifest_digest=manifest.digest,
        config_digest=config.fingerprint(),
        history=tuple({"step": float(step + 1), "loss": 3.0 - step / 10} for step in range(config.train.num_steps)),
        validation=validation,
        metric=error,
        selected_by="" if error is None else "masked",
        versions=package_versions(),
        elapsed_s=2.0,
    )
    moments = {f"exp_avg.{name}": torch.zeros_like(each) for name, each in weights.items()}
    save_checkpoint(checkpoints_uri(config.store, config.run), weights, moments, state)
    save_done(config, Done(mlflow_run_id=None, hardware=(hardware,) if hardware else ()))
    result = find_result(config, manifest.digest)
    assert result is not None
    spec = ExportSpec(model, vocabulary, labels, parent=parent)
    for which in ("best", "last"):
        digest = export_bundle(config, result, spec, which=which).digest
    return digest
