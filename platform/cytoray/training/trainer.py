"""The Ray Train assembly of a run: data, workers, restarts; a finished run is found and returned, not repeated."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

import ray
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cytoray import failpoints, progress, storage
from cytoray.cluster import user_error
from cytoray.config import Config
from cytoray.corpus.deal import DealtSteps, steps_dataset
from cytoray.corpus.stream import CorpusStream
from cytoray.errors import RegistryError, TrainingError, TrainingStoppedError
from cytoray.model.config import ModelConfig
from cytoray.tracking import TrackingConfig
from cytoray.tracking.server import connect
from cytoray.training import checkpoint as checkpoints
from cytoray.training import lease
from cytoray.training.board import Board, Watch
from cytoray.training.config import RunConfig, WorkersConfig
from cytoray.training.hardware import package_versions
from cytoray.training.loop import WorkerSettings, train_worker
from cytoray.training.objectives import Objective
from cytoray.training.record import RunRecord, claim_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSpec:
    """A run, ready to start: its configuration and what has been built from it."""

    config: RunConfig
    stream: CorpusStream
    model: ModelConfig
    pad_id: int
    objective: Objective
    initial: checkpoints.Checkpoint | None = None
    held_out: CorpusStream | None = None


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its last checkpoint, and that with the lowest validation error (the same without validation)."""

    checkpoint: checkpoints.Checkpoint
    best: checkpoints.Checkpoint
    manifest_digest: str
    config_digest: str
    mlflow_run_id: str | None
    skipped: bool  # it was finished before
    hardware: tuple[dict[str, str], ...] = ()
    events: tuple[str, ...] = ()

    @property
    def history(self) -> list[dict[str, float]]:
        """Losses at about 200 evenly spaced steps, each with its ``step``."""
        return [dict(point) for point in self.checkpoint.state.history]

    def summary(self) -> dict[str, Any]:
        """What a job prints: the last checkpoint, its loss, and what it belongs to."""
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


class _Done(Config):
    """``DONE.json``: written when a run is finished."""

    mlflow_run_id: str | None
    hardware: tuple[dict[str, str], ...] = ()
    events: tuple[str, ...] = ()


def run_training(spec: TrainingSpec, *, advance: progress.Advance = progress.silent) -> TrainingResult:
    """Train to the end, going on from the last committed checkpoint; a finished run is returned as it is.

    ``advance`` is told of steps. Raises TrainingError where the run is another's, or another one; TrainingStoppedError
    where SIGTERM asked it to stop, which it does after the step under way and a checkpoint; or the CytorayError that a
    worker raised.
    """
    config, digest = spec.config, spec.stream.manifest.digest
    run_uri = storage.join(config.store, "runs", config.run)
    record = claim_run(config, digest)
    done_uri, skipped = storage.join(run_uri, "DONE.json"), True
    if not storage.exists(done_uri):
        with lease.held(run_uri, config.run):
            done, skipped = _fit(spec, record, advance), False
            storage.write_bytes(done_uri, done.model_dump_json().encode())
    done = _Done.model_validate_json(storage.read_bytes(done_uri))
    last = checkpoints.require_checkpoint(config.store, config.run)
    best = checkpoints.best_checkpoint(config.store, config.run) or last
    return TrainingResult(
        last, best, digest, config.fingerprint(), done.mlflow_run_id, skipped, done.hardware, done.events
    )


def _fit(spec: TrainingSpec, record: RunRecord, advance: progress.Advance) -> _Done:
    """Run Ray Train, showing steps as they come."""
    config = spec.config
    # Beside the driver: a node that is lost must not take it along.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    saved = checkpoints.latest_checkpoint(config.store, config.run)
    for name in checkpoints.damaged_checkpoints(config.store, config.run, saved):  # said in the log when they were read
        board.note.remote(f"checkpoint {name} is damaged, and was not used")
    for event in _changed_versions(saved) if saved is not None else ():
        logger.warning(event)
        board.note.remote(event)
    threading.Thread(target=_prepare_tracking, args=(config.tracking,), daemon=True).start()
    settings = WorkerSettings(
        config=config,
        model=spec.model,
        pad_id=spec.pad_id,
        objective=spec.objective,
        manifest_digest=spec.stream.manifest.digest,
        config_digest=config.fingerprint(),
        run_uuid=record.run_uuid,
        initial=spec.initial,
        board=board,
        held_out=spec.held_out,
    )
    with tempfile.TemporaryDirectory(prefix="cytoray-train-") as scratch:
        trainer = _build_trainer(spec, settings, scratch)
        try:
            with Watch(board, advance):
                trainer.fit()
        except TrainingFailedError as error:
            raise user_error(error) or _failed(config, error) from error
    news = ray.get(board.read.remote())
    if news.error is not None:
        raise news.error
    if news.step < config.train.num_steps:
        raise TrainingStoppedError(
            f"Run {config.run!r} was asked to stop and has committed a checkpoint at step {news.step} of "
            f"{config.train.num_steps}.",
            remedy=f"Run the same command again, or `cytoray train resume {config.run}`, to go on.",
            step=news.step,
        )
    return _Done(mlflow_run_id=news.mlflow_run_id, hardware=news.hardware, events=news.events)


def _failed(config: RunConfig, error: TrainingFailedError) -> TrainingError:
    """What to tell of workers that kept failing with what is no error of ours; its traceback goes to the log."""
    logger.error("run %s: %s", config.run, error)
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
    return TrainingError(
        f"Run {config.run!r} failed, and again after {config.workers.max_failures} restarts (workers.max_failures): "
        f"{lines[-1] if lines else type(causes[0]).__name__}",
        remedy="What is committed is intact. Mend the cause, whose traceback is in the log, and run the command again.",
    )


def _changed_versions(saved: checkpoints.Checkpoint) -> list[str]:
    """What a checkpoint was written with that is another version here: numbers may differ in their last bits."""
    here = package_versions()
    return [
        f"the checkpoint of step {saved.state.step} was written with {name} {version}, this is {here[name]}: "
        "the run goes on, but may end with other weights than one that was never interrupted"
        for name, version in saved.state.versions.items()
        if here.get(name, version) != version
    ]


def _build_trainer(spec: TrainingSpec, settings: WorkerSettings, scratch: str) -> TorchTrainer:
    """Ray Train's part: workers, restarts, data."""
    config, workers = spec.config, spec.config.workers

    def remaining_steps() -> ray.data.Dataset:
        # Called at every start of the workers: the newest commit says where the data goes on.
        saved = checkpoints.latest_checkpoint(config.store, config.run)
        return steps_dataset(spec.stream, saved.state.step if saved else 0, config.train.num_steps)

    return TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,  # type: ignore[arg-type] # a pair too, says its documentation
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo", timeout_s=workers.collective_timeout_s),
        run_config=RayRunConfig(
            name=settings.run_uuid,
            storage_path=scratch,  # Ray keeps nothing of ours: checkpoints go through our own commit
            failure_config=FailureConfig(max_failures=workers.max_failures),
            worker_runtime_env={"env_vars": _worker_environment(workers)},  # type: ignore[call-arg]
        ),
        datasets={"train": remaining_steps},
        dataset_config=DealtSteps(spec.stream),
    )


def _prepare_tracking(tracking: TrackingConfig) -> None:
    """Make MLflow's tables while the workers start: a new database takes longer than a short run waits at its end."""
    try:
        connect(tracking.uri)
    except RegistryError as error:
        logger.warning(
            "training goes on without MLflow, and its journal is kept for `cytoray tracking sync`: %s", error
        )


def _worker_environment(workers: WorkersConfig) -> dict[str, str]:
    """Variables that a worker needs before its first import, and the failpoints of a test."""
    environment = {} if workers.use_gpu else {"DS_ACCELERATOR": "cpu"}
    return environment | {
        name: os.environ[name] for name in (failpoints.VARIABLE, failpoints.ONCE_VARIABLE) if name in os.environ
    }
