"""The Ray Train assembly of a run: data, workers, restarts; a finished run is found and returned, not repeated."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import uuid
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cytoray import failpoints, progress, storage
from cytoray.config import Config
from cytoray.corpus.deal import DealtSteps, steps_dataset
from cytoray.corpus.stream import CorpusStream
from cytoray.errors import ConflictError, RegistryError, TrainingError
from cytoray.model.config import ModelConfig
from cytoray.tracking import TrackingConfig
from cytoray.tracking.server import connect
from cytoray.training import checkpoint as checkpoints
from cytoray.training.config import RunConfig, WorkersConfig
from cytoray.training.loop import WorkerSettings, train_worker
from cytoray.training.objectives import Objective

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


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    checkpoint: checkpoints.Checkpoint
    manifest_digest: str
    config_digest: str
    mlflow_run_id: str | None
    skipped: bool

    @property
    def history(self) -> list[dict[str, float]]:
        """Losses at about 200 evenly spaced steps, each with its ``step``."""
        return [dict(point) for point in self.checkpoint.state.history]

    def summary(self) -> dict[str, Any]:
        """What a job prints: the last checkpoint, its loss, and what it belongs to."""
        return {
            "checkpoint": self.checkpoint.uri,
            "step": self.checkpoint.state.step,
            "first_loss": self.history[0]["loss"],
            "last_loss": self.history[-1]["loss"],
            "corpus_manifest_digest": self.manifest_digest,
            "config_digest": self.config_digest,
            "mlflow_run_id": self.mlflow_run_id,
            "skipped": self.skipped,
        }


class _RunRecord(Config):
    """``run.json``: what a run is; written once, when it first starts."""

    run_uuid: str
    manifest_digest: str
    config: dict[str, Any]


class _Done(Config):
    """``DONE.json``: written when a run is finished."""

    mlflow_run_id: str | None


def run_training(spec: TrainingSpec, *, advance: progress.Advance = progress.silent) -> TrainingResult:
    """Train to the end, going on from the last committed checkpoint; a finished run is returned as it is.

    ``advance`` is told of steps. Raises TrainingError, or the CytorayError that a worker raised.
    """
    config, digest = spec.config, spec.stream.manifest.digest
    record = _claim(config, digest)
    done_uri = storage.join(config.store, "runs", config.run, "DONE.json")
    if storage.exists(done_uri):
        done, skipped = _Done.model_validate_json(storage.read_bytes(done_uri)), True
    else:
        done, skipped = _fit(spec, record, advance), False
        storage.write_bytes(done_uri, done.model_dump_json().encode())
    last = checkpoints.require_checkpoint(config.store, config.run)
    return TrainingResult(last, digest, config.fingerprint(), done.mlflow_run_id, skipped)


def _claim(config: RunConfig, manifest_digest: str) -> _RunRecord:
    """Record what this run is, or find that it is the same; TrainingError naming the keys that differ."""
    uri = storage.join(config.store, "runs", config.run, "run.json")
    mine = _RunRecord(run_uuid=uuid.uuid4().hex, manifest_digest=manifest_digest, config=config.model_dump(mode="json"))
    try:
        storage.put_if_absent(uri, mine.model_dump_json().encode())
    except ConflictError:
        there = _RunRecord.model_validate_json(storage.read_bytes(uri))
        differing = _differences(there.config, mine.config, "")
        if there.manifest_digest != manifest_digest:
            differing.append("corpus (its manifest digest)")
        if differing:
            raise TrainingError(
                f"Run {config.run!r} was started with other settings: {', '.join(differing)}.",
                remedy="Use another run name, or the settings it was started with.",
                keys=differing,
            ) from None
        return there
    return mine


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str) -> list[str]:
    """Key paths whose values differ; where things lie does not matter."""
    keys: list[str] = []
    for key in sorted(there.keys() | here.keys()):
        path, old, new = f"{prefix}{key}", there.get(key), here.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            keys.extend(_differences(old, new, f"{path}."))
        elif old != new and path.partition(".")[0] not in RunConfig.places:
            keys.append(path)
    return keys


def _fit(spec: TrainingSpec, record: _RunRecord, advance: progress.Advance) -> _Done:
    """Run Ray Train, showing steps as they come."""
    config, workers = spec.config, spec.config.workers
    board: Any = ray.remote(_Board).options(num_cpus=0).remote()
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
    )

    def remaining_steps() -> ray.data.Dataset:
        # Called at every start of the workers: the newest commit says where the data goes on.
        saved = checkpoints.latest_checkpoint(config.store, config.run)
        return steps_dataset(spec.stream, saved.state.step if saved else 0, config.train.num_steps)

    with tempfile.TemporaryDirectory(prefix="cytoray-train-") as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"settings": settings},
            scaling_config=ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=workers.use_gpu,
                resources_per_worker={"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})},
            ),
            torch_config=TorchConfig(
                backend="nccl" if workers.use_gpu else "gloo", timeout_s=workers.collective_timeout_s
            ),
            run_config=RayRunConfig(
                name=record.run_uuid,
                storage_path=scratch,  # Ray keeps nothing of ours: checkpoints go through our own commit
                failure_config=FailureConfig(max_failures=workers.max_failures),
                worker_runtime_env={"env_vars": _worker_environment(workers)},  # type: ignore[call-arg]
            ),
            datasets={"train": remaining_steps},
            dataset_config=DealtSteps(spec.stream),
        )
        with _Watch(board, advance):
            trainer.fit()
    return _Done(mlflow_run_id=ray.get(board.read_run_id.remote()))


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
    return environment | {name: os.environ[name] for name in (failpoints.VARIABLE,) if name in os.environ}


class _Board:
    """An actor that rank 0 tells of its steps and the driver asks."""

    def __init__(self) -> None:
        self._step, self._loss = 0, float("nan")
        self._mlflow_run_id: str | None = None

    def post(self, step: int, loss: float) -> None:
        """Note the newest step."""
        self._step, self._loss = step, loss

    def end(self, mlflow_run_id: str | None) -> None:
        """Note the MLflow run, None if MLflow was never reached."""
        self._mlflow_run_id = mlflow_run_id

    def read_run_id(self) -> str | None:
        """The MLflow run of a finished training run."""
        return self._mlflow_run_id

    def read(self) -> tuple[int, float]:
        """The newest step and its loss."""
        return self._step, self._loss


class _Watch:
    """Passes the board's news on while the block runs."""

    def __init__(self, board: Any, advance: progress.Advance) -> None:
        self._board, self._advance = board, advance
        self._shown, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)
        self._show()

    def _poll(self) -> None:
        while not self._over.wait(0.5):
            self._show()

    def _show(self) -> None:
        step, loss = cast("tuple[int, float]", ray.get(self._board.read.remote()))
        if step > self._shown:
            self._advance(step - self._shown, f"loss {loss:.3f}")
            self._shown = step
