"""The result of a finished run, found without Ray from ``DONE.json`` and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cytoray import storage
from cytoray.errors import TrainingError, TrainingStoppedError
from cytoray.model.targets import points_since_best
from cytoray.runs import Done as Done  # it is imported from here too
from cytoray.runs import done_uri
from cytoray.training import checkpoint as checkpoints
from cytoray.training.config import RunConfig


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its last checkpoint, and the one with the lowest validation error (the last without any)."""

    checkpoint: checkpoints.Checkpoint
    best: checkpoints.Checkpoint
    manifest_digest: str
    config_digest: str
    mlflow_run_id: str | None
    skipped: bool  # it was already finished
    hardware: tuple[dict[str, str], ...] = ()
    events: tuple[str, ...] = ()

    @property
    def history(self) -> list[dict[str, float]]:
        """Losses at about 200 evenly spaced steps, each with its ``step``."""
        return [dict(point) for point in self.checkpoint.state.history]

    def summary(self) -> dict[str, Any]:
        """Return the JSON that a job prints: the last checkpoint, its loss and its lineage."""
        return {
            "checkpoint": self.checkpoint.uri,
            "step": self.checkpoint.state.step,
            "first_loss": self.history[0].get("loss"),
            "last_loss": self.history[-1].get("loss"),
            "best_checkpoint": self.best.uri,
            "best_validation_error": self.best.state.metric,
            "corpus_manifest_digest": self.manifest_digest,
            "config_digest": self.config_digest,
            "mlflow_run_id": self.mlflow_run_id,
            "skipped": self.skipped,
        }


def is_finished(config: RunConfig, step: int, validation: Sequence[Mapping[str, float]], *, selected_by: str) -> bool:
    """Whether a run has taken its last step: ``num_steps``, or one after which validation has lost its patience.

    ``validation`` are its results by step, of which the error ``selected_by`` counts; empty before the first.
    """
    if step >= config.train.num_steps:
        return True
    if config.validation is None or config.validation.patience is None or not selected_by:
        return False
    errors = [point.get(selected_by, math.inf) for point in validation]
    return points_since_best(errors) >= config.validation.patience


def _has_finished(config: RunConfig, state: checkpoints.TrainerState) -> bool:
    return is_finished(config, state.step, state.validation, selected_by=state.selected_by)


def check_finished(config: RunConfig) -> None:
    """Raise TrainingStoppedError if the newest checkpoint is not that of a finished run: it was asked to stop."""
    saved = checkpoints.require_checkpoint(config.store, config.run)
    if not _has_finished(config, saved.state):
        raise TrainingStoppedError(
            f"Run {config.run!r} was asked to stop and has committed a checkpoint at step {saved.state.step} of "
            f"{config.train.num_steps}.",
            remedy=f"To continue, run the same command again, or `cytoray train resume {config.run}`.",
            step=saved.state.step,
        )


def save_done(config: RunConfig, done: Done) -> None:
    """Record that the run is finished."""
    storage.write_bytes(done_uri(config.store, config.run), done.model_dump_json().encode())


def find_result(config: RunConfig, manifest_digest: str, *, skipped: bool = True) -> TrainingResult | None:
    """The result of a run that has finished; None if steps are left.

    Raises TrainingError if it has done more than ``train.num_steps``.
    """
    wanted = config.train.num_steps
    last = checkpoints.latest_checkpoint(config.store, config.run)
    if last is not None and last.state.step > wanted:
        raise TrainingError(
            f"Run {config.run!r} has already done {last.state.step} steps, more than train.num_steps ({wanted}).",
            remedy=f"Set train.num_steps to {last.state.step} or more, or use another run name.",
            step=last.state.step,
        )
    if last is None or not _has_finished(config, last.state) or not storage.exists(done_uri(config.store, config.run)):
        return None
    done = Done.model_validate_json(storage.read_bytes(done_uri(config.store, config.run)))
    best = checkpoints.best_checkpoint(config.store, config.run) or last
    return TrainingResult(
        checkpoint=last,
        best=best,
        manifest_digest=manifest_digest,
        config_digest=config.fingerprint(),
        mlflow_run_id=done.mlflow_run_id,
        skipped=skipped,
        hardware=done.hardware,
        events=done.events,
    )
