"""A registry with versions of a model that differ in their weights, and a slot that follows an alias in it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cytoray.model.bundle import ModelBundle, load_bundle, save_bundle
from cytoray.model.predictor import CellPredictor
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.models import register
from cytoray.registry.pinning import pin_model
from cytoray.serving.config import AppArgs, Limits
from cytoray.serving.hosting.loading import load_service
from cytoray.serving.rollout.building import build_slot
from cytoray.serving.rollout.config import RolloutConfig
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.tracking import TrackingConfig

NAME, ALIAS = "tiny", "models:/tiny@champion"


@pytest.fixture
def tracking(mlflow_uri: str, tmp_path: Path) -> TrackingConfig:
    """An MLflow of its own for one test."""
    return TrackingConfig(uri=mlflow_uri, journal_folder=str(tmp_path / "runs"))


@pytest.fixture
def change_bundle(build_bundle: Callable[..., ModelBundle]) -> Callable[..., ModelBundle]:
    """Return the bundle of a version: the same with scaled weights."""

    def change(number: int, **options: Any) -> ModelBundle:
        bundle = build_bundle(**options)
        with torch.no_grad():
            for parameter in bundle.model.parameters():
                parameter.mul_(1 + 0.2 * number)
        return replace(bundle, digest=None)

    return change


@pytest.fixture
def publish(
    change_bundle: Callable[..., ModelBundle], tracking: TrackingConfig, tmp_path: Path
) -> Callable[..., RegisteredVersion]:
    """Register a version with ``alias``; ``bundle`` is another one than that of its number."""

    def publish(number: int, *, alias: str | None = "champion", bundle: ModelBundle | None = None) -> RegisteredVersion:
        folder = tmp_path / f"bundle-{number}"
        save_bundle(bundle or change_bundle(number), folder)
        return register(folder, name=NAME, tracking=tracking, alias=alias)

    return publish


@pytest.fixture
def offline(tmp_path: Path, as_cells: Any) -> Callable[[int, Any], Any]:
    """Return the embeddings that the bundle of a version gives without a service."""

    def predict(number: int, counts: Any) -> Any:
        return CellPredictor(load_bundle(tmp_path / f"bundle-{number}")).predict(as_cells(counts)).embeddings

    return predict


@pytest.fixture
def args(tracking: TrackingConfig, tmp_path: Path) -> AppArgs:
    """Arguments of a service that follows the alias when a test asks it to look."""
    return AppArgs(
        model_uri=ALIAS,
        tracking=tracking,
        cache_folder=str(tmp_path / "cache"),
        limits=Limits(min_gene_overlap=0.1),
        rollout=RolloutConfig(poll_s=1000.0),
    )


@pytest.fixture
def follow(args: AppArgs, runner: asyncio.Runner) -> Iterator[Callable[..., ModelSlot]]:
    """Build a slot of a replica; ``load`` replaces how it loads a version, options are those of its rollouts."""
    slots: list[ModelSlot] = []

    def follow(*, load: Any = load_service, pinned: Any = None, **options: Any) -> ModelSlot:
        changed = args.model_copy(update={"rollout": args.rollout.model_copy(update=options)})
        pinned = pinned or pin_model(ALIAS, sources=args.sources())
        slots.append(build_slot(changed, pinned, load=load))
        return slots[-1]

    yield follow
    for slot in slots:
        runner.run(slot.close())


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
