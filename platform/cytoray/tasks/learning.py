"""Fine-tune a model for a task: the steps that all tasks share.

A task has a function ``prepare`` from its configuration to ``Learning``: its stream, model, objective and bundle.
Opening the initial model, training through Ray Train, the bundles and the run card are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cytoray import progress
from cytoray.errors import ModelError
from cytoray.registry.opening import OpenedModel, open_model
from cytoray.runs import BundleRecord
from cytoray.tasks.config import FromModelConfig
from cytoray.training.export import ExportSpec, export_bundles
from cytoray.training.report import Stability, save_card
from cytoray.training.trainer import TrainingResult, TrainingSpec, run_training

Settings = TypeVar("Settings", bound=FromModelConfig)


@dataclass(frozen=True)
class Learning:
    """A task ready to be trained: the run, its bundle, and perhaps what the run card shows besides."""

    training: TrainingSpec
    export: ExportSpec
    stability: Callable[[BundleRecord], Stability] | None = None  # of answers to held-out cells


def open_initial(config: FromModelConfig) -> OpenedModel:
    """Open the model that ``config.initial`` names; ModelError if it needs more of a cell than genes and values."""
    opened = open_model(
        config.initial_uri, store=config.store, tracking=config.tracking, cache_folder=config.cache_folder
    )
    if needed := opened.bundle.model.config.needed_conditions:
        raise ModelError(
            f"{opened.uri} needs {' and '.join(needed)} for each cell; {config.kind} starts from a model of genes and "
            "values.",
            remedy="Name such a model as `initial`, for example a pretrained one.",
        )
    return opened


def learn(learning: Learning, *, advance: progress.Advance = progress.silent) -> tuple[TrainingResult, BundleRecord]:
    """Train and export; returns the result of the run and its bundle. ``advance`` counts steps."""
    result = run_training(learning.training, advance=advance)
    return result, export_bundles(learning.training.config, result, learning.export)


def run_learning(config: Settings, prepare: Callable[[Settings], Learning]) -> dict[str, Any]:
    """Train as a stage; returns the result of the run, its bundle and its card as JSON data."""
    with progress.stage(config.kind, total=config.train.num_steps, unit="steps") as advance:
        learning = prepare(config)
        result, bundle = learn(learning, advance=advance)
    stability = None if learning.stability is None else learning.stability(bundle)
    card = save_card(config, result, bundle=bundle, stability=stability)
    return result.summary() | {"bundle": bundle.uri, "bundle_digest": bundle.digest, "card": card}
