"""Build the run card of a finished run from its last checkpoint, and store it with the run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cytoray import provenance, storage
from cytoray.runs import BundleRecord, run_folder
from cytoray.training.card import RunCard
from cytoray.training.config import RunConfig
from cytoray.training.hardware import package_versions
from cytoray.training.result import TrainingResult

Scores = Mapping[str, Mapping[str, float]]
Stability = Mapping[str, Mapping[str, float | int | None]]

Value = TypeVar("Value")


def save_card(
    config: RunConfig,
    result: TrainingResult,
    *,
    bundle: BundleRecord | None,
    scores: Scores | None = None,
    stability: Stability | None = None,
) -> str:
    """Write the run's card below ``<run>/card``; returns the page's URI.

    ``scores`` and ``stability`` are those on held-out cells.
    """
    target = storage.join(run_folder(config.store, config.run), "card")
    from cytoray.training.card_page import write_card  # matplotlib: only when a card is written

    with tempfile.TemporaryDirectory(prefix="cytoray-card-") as scratch:
        card = _build_card(config, result, bundle, scores or {})
        write_card(replace(card, stability=_plain(stability or {})), Path(scratch) / "card")
        storage.upload_folder(Path(scratch) / "card", target)
    return storage.join(target, "card.html")


def _build_card(config: RunConfig, result: TrainingResult, bundle: BundleRecord | None, scores: Scores) -> RunCard:
    state = result.checkpoint.state
    digests = {"corpus manifest": result.manifest_digest, "configuration": result.config_digest}
    if bundle is not None:
        digests["bundle"] = bundle.digest
    skipped = [f"step {step} was skipped: its gradient was not finite" for step in state.skipped]
    return RunCard(
        run=config.run,
        kind=config.kind,
        config_yaml=config.to_yaml(),
        digests=digests,
        code={"git revision": provenance.git_revision(), **package_versions()},
        hardware=tuple(dict(worker) for worker in result.hardware),
        history=result.history,
        validation=[dict(point) for point in state.validation],
        scores=_plain(scores),
        events=[*(event for event in result.events if "was skipped" not in event), *skipped],
        totals={
            "steps": float(state.step),
            "cells": float(state.step * config.train.cells_per_step),
            "seconds": state.elapsed_s,
        },
        reproduce=_reproduce(config, result),
        mlflow_run_id=result.mlflow_run_id,
    )


def _plain(rows: Mapping[str, Mapping[str, Value]]) -> dict[str, dict[str, Value]]:
    """The same rows as dictionaries."""
    return {name: dict(row) for name, row in rows.items()}


def _reproduce(config: RunConfig, result: TrainingResult) -> list[str]:
    """Shell lines that reproduce the run from the same cells."""
    revision = provenance.git_revision().removesuffix("-dirty")
    lines = [] if revision == "unknown" else [f"git checkout {revision}"]
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        lines.append(f"export AWS_ENDPOINT_URL={endpoint}")
    return [
        *lines,
        f"# run.yaml: the configuration below, with another run name; corpus manifest {result.manifest_digest}",
        f"cytoray {config.kind} --config run.yaml",
    ]
