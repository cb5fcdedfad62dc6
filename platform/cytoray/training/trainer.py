"""Run training with Ray Train: data, workers, restarts; a finished run is returned, not repeated."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cytoray import cluster, failpoints, progress
from cytoray.cluster import user_error
from cytoray.corpus.deal import DealtSteps, steps_dataset
from cytoray.corpus.stream import CorpusStream
from cytoray.errors import ConfigError, RegistryError, StorageError, TrainingError
from cytoray.model.config import ModelConfig
from cytoray.runs import run_folder
from cytoray.tracking import RunLog, TrackingConfig
from cytoray.tracking.server import connect
from cytoray.training import checkpoint as checkpoints
from cytoray.training import lease
from cytoray.training.board import Board, Watch
from cytoray.training.config import RunConfig, WorkersConfig
from cytoray.training.hardware import package_versions
from cytoray.training.initial import InitialModel
from cytoray.training.loop import WorkerSettings, train_worker
from cytoray.training.objectives import Objective
from cytoray.training.record import RunRecord, claim_run, record_changes
from cytoray.training.result import Done, TrainingResult, check_finished, find_result, save_done

__all__ = ["TrainingResult", "TrainingSpec", "run_training"]
logger = logging.getLogger(__name__)
FAILURE_WAIT_S = 5.0  # wait for MLflow before the error is shown; the journal keeps the rest


@dataclass(frozen=True)
class TrainingSpec:
    """A run ready to start: its configuration and the objects built from it."""

    config: RunConfig
    stream: CorpusStream
    model: ModelConfig
    pad_id: int
    objective: Objective
    initial: InitialModel | None = None
    held_out: CorpusStream | None = None
    rows: npt.NDArray[np.int64] | None = None  # ids of the genes whose embeddings are trained; None: all

    @property
    def initial_digest(self) -> str:
        """Digest of the model that the run starts from; empty without one."""
        return "" if self.initial is None else self.initial.digest


def run_training(spec: TrainingSpec, *, advance: progress.Advance = progress.silent) -> TrainingResult:
    """Train to the end from the last committed checkpoint; a run that has done all its steps is returned unchanged.

    ``advance`` receives the steps. Raises TrainingError if another process owns the run or its settings differ,
    TrainingStoppedError if SIGTERM asked it to stop (after the current step and a checkpoint), or the CytorayError
    that a worker raised; ConfigError if the workers cannot share the minibatches of a step evenly.
    """
    config, digest = spec.config, spec.stream.manifest.digest
    _check_minibatches(spec)
    _check_frozen(spec)
    record = claim_run(config, digest, initial_digest=spec.initial_digest)
    if (result := find_result(config, digest)) is not None:
        return result
    with lease.held(run_folder(config.store, config.run), config.run) as holder:
        done = _fit(spec, record, holder, advance)
        holder.lease.check()
        failpoints.failpoint("train.before_done")
        save_done(config, done)
        failpoints.failpoint("train.after_done")
    result = find_result(config, digest, skipped=False)
    assert result is not None, "all steps have just been done"
    return result


def _check_minibatches(spec: TrainingSpec) -> None:
    """Raise ConfigError if the minibatches of a step cannot be dealt evenly to every allowed number of workers."""
    config, size = spec.config, spec.stream.options.cells_per_minibatch
    assert spec.objective.scope == "cell" or size is not None, "this objective needs cells_per_minibatch in its stream"
    for num_workers in config.workers.sizes:
        if size is not None and config.train.cells_per_step % (size * num_workers):
            raise ConfigError(
                f"train.cells_per_step ({config.train.cells_per_step}) is not a multiple of {size} cells per minibatch "
                f"times {num_workers} workers.",
                remedy=f"Use a multiple of {size * num_workers}, or change workers.num_workers.",
                key="train.cells_per_step",
            )


def _check_frozen(spec: TrainingSpec) -> None:
    """Raise ConfigError if more layers are to be frozen than the model has, or layers of random weights."""
    wanted, num_layers = spec.config.optimizer.freeze_layers, spec.model.num_layers
    if wanted > num_layers:
        raise ConfigError(
            f"optimizer.freeze_layers is {wanted}, and this model has {num_layers} layers.",
            remedy=f"Use {num_layers} or less.",
            key="optimizer.freeze_layers",
        )
    if wanted and spec.initial is None:
        raise ConfigError(
            f"optimizer.freeze_layers is {wanted}, but the run starts from random weights.",
            remedy="Leave it out: only layers of a trained model can be frozen.",
            key="optimizer.freeze_layers",
        )


def _fit(spec: TrainingSpec, record: RunRecord, holder: lease.Holder, advance: progress.Advance) -> Done:
    """Run Ray Train and report steps while it runs."""
    config = spec.config
    cluster.start()
    board = _build_board(spec, record)
    threading.Thread(target=_prepare_tracking, args=(config.tracking,), daemon=True).start()
    settings = WorkerSettings(
        config=config,
        model=spec.model,
        pad_id=spec.pad_id,
        objective=spec.objective,
        manifest_digest=spec.stream.manifest.digest,
        config_digest=config.fingerprint(),
        run_uuid=record.run_uuid,
        initial=None if spec.initial is None else spec.initial.share(),
        board=board,
        held_out=spec.held_out,
        rows=spec.rows,
        lease=holder.lease,
    )
    with tempfile.TemporaryDirectory(prefix="cytoray-train-") as scratch:
        trainer = _build_trainer(spec, settings, scratch)
        try:
            with Watch(board, advance, lost=holder.lost):
                trainer.fit()
        except TrainingFailedError as error:
            found = user_error(error)
            if not isinstance(found, lease.LeaseLostError):  # its new holder logs to the same MLflow run
                _log_failure(config, record)
            raise found or _failed(config, error) from error
    news = ray.get(board.read.remote())
    if news.error is not None:
        raise news.error
    check_finished(config)
    return Done(mlflow_run_id=news.mlflow_run_id, hardware=news.hardware, events=news.events)


def _build_board(spec: TrainingSpec, record: RunRecord) -> Any:
    """Start the run's board and note events from before the workers start."""
    config = spec.config
    # On the driver's node, so that it survives the loss of any other.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()
    saved = checkpoints.latest_checkpoint(config.store, config.run)
    for name in checkpoints.damaged_checkpoints(config.store, config.run, saved):  # logged when they were read
        board.note.remote(f"checkpoint {name} is damaged, and was not used")
    changes = record_changes(config, record, initial_digest=spec.initial_digest)
    for event in [*changes, *(_changed_versions(saved) if saved is not None else ())]:
        logger.warning(event)
        board.note.remote(event)
    return board


def _log_failure(config: RunConfig, record: RunRecord) -> None:
    """Mark the run FAILED in MLflow: workers that were killed could not."""
    try:
        log = RunLog.open(config.tracking, run_uuid=record.run_uuid, run_name=config.run)
    except StorageError as error:
        logger.warning("the failure of run %s is not in its journal: %s", config.run, error)
        return
    log.finish("FAILED", wait_s=FAILURE_WAIT_S)


def _failed(config: RunConfig, error: TrainingFailedError) -> TrainingError:
    """Describe a worker failure that is not a CytorayError; its traceback goes to the log."""
    logger.error("run %s: %s", config.run, error)
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    lines = [line.strip() for line in str(causes[0]).splitlines() if line.strip()]
    return TrainingError(
        f"Run {config.run!r} failed, and again after {config.workers.max_failures} restarts (workers.max_failures): "
        f"{lines[-1] if lines else type(causes[0]).__name__}",
        remedy="Committed checkpoints are intact. Fix the cause (see the traceback in the log) and run it again.",
    )


def _changed_versions(saved: checkpoints.Checkpoint) -> list[str]:
    """List packages whose version differs from the checkpoint's: results may differ in their last bits."""
    here = package_versions()
    return [
        f"the checkpoint of step {saved.state.step} was written with {name} {version}, this is {here[name]}: "
        "the run continues, but its weights may differ from those of an uninterrupted run"
        for name, version in saved.state.versions.items()
        if here.get(name, version) != version
    ]


def _build_trainer(spec: TrainingSpec, settings: WorkerSettings, scratch: str) -> TorchTrainer:
    """Configure Ray Train: workers, restarts, data."""
    config, workers = spec.config, spec.config.workers

    def remaining_steps() -> ray.data.Dataset:
        """Return the steps after the newest commit."""
        # Called at every start of the workers: data continues at the newest commit.
        saved = checkpoints.latest_checkpoint(config.store, config.run)
        return steps_dataset(spec.stream, saved.state.step if saved else 0, config.train.num_steps)

    return TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        scaling_config=ScalingConfig(
            num_workers=workers.num_workers,  # type: ignore[arg-type] # a pair is documented too
            use_gpu=workers.use_gpu,
            resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
        ),
        torch_config=TorchConfig(backend="nccl" if workers.use_gpu else "gloo", timeout_s=workers.collective_timeout_s),
        run_config=RayRunConfig(
            name=settings.run_uuid,
            storage_path=scratch,  # unused by us: checkpoints have their own commit
            failure_config=FailureConfig(max_failures=workers.max_failures),
            worker_runtime_env={"env_vars": _worker_environment(workers)},  # type: ignore[call-arg]
        ),
        datasets={"train": remaining_steps},
        dataset_config=DealtSteps(spec.stream),
    )


def _prepare_tracking(tracking: TrackingConfig) -> None:
    """Create MLflow's tables while the workers start: this takes longer than a short run waits at its end."""
    try:
        connect(tracking.uri)
    except RegistryError as error:
        logger.warning(
            "training continues without MLflow, and its journal is kept for `cytoray tracking sync`: %s", error
        )


def _worker_environment(workers: WorkersConfig) -> dict[str, str]:
    """Environment variables that a worker needs before its first import, and failpoints of tests."""
    environment = {} if workers.use_gpu else {"DS_ACCELERATOR": "cpu"}
    return environment | {
        name: os.environ[name] for name in (failpoints.VARIABLE, failpoints.ONCE_VARIABLE) if name in os.environ
    }
