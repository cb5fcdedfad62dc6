"""Checkpoints: full weights and Adam moments by name as safetensors, restored at any world size; COMMIT comes last.

``<run>/checkpoints/step-000000020/{model,optimizer}.safetensors, state.json, COMMIT.json``: a folder without COMMIT
does not exist for any reader, and COMMIT lists the SHA-256 of every file.
"""

from __future__ import annotations

import logging
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from pydantic import Field, ValidationError, model_validator
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import DigestError, NotFoundError, TrainingError
from cytoray.failpoints import failpoint

logger = logging.getLogger(__name__)
COMMIT = "COMMIT.json"
WEIGHTS, MOMENTS, AVERAGES, STATE = "model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json"


class TrainerState(Config):
    """What the loop needs to go on: the step, and what it belongs to."""

    step: int = Field(description="Steps done; also the next step to do.")
    manifest_digest: str
    config_digest: str
    history: tuple[dict[str, float], ...] = Field(description="Figures of about 200 evenly spaced steps, with `step`.")
    validation: tuple[dict[str, float], ...] = Field((), description="What was found on the cells held out, by step.")
    num_updates: int | None = Field(None, description="Optimiser updates done, Adam's count; None is as many as steps.")
    skipped: tuple[int, ...] = Field((), description="Steps left out since their gradient was not finite.")
    metric: float | None = Field(None, description="Error on the cells held out at this step; less is better.")
    versions: dict[str, str] = Field({}, description="Packages on which numbers may depend.")
    world_size: int = 1
    zero_stage: int = 0
    elapsed_s: float = Field(0.0, description="Time spent on training so far, over all starts.")


class _Commit(Config):
    """``COMMIT.json``: with it a checkpoint exists."""

    files: dict[str, str] = Field(description="SHA-256 of each file.")
    attempt: str
    metric: float | None = None

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        if not {WEIGHTS, MOMENTS, STATE} <= self.files.keys():
            raise ValueError("a commit must name weights, moments and state")
        return self


class Checkpoint(Config):
    """A committed checkpoint and the digests of its files."""

    uri: str
    state: TrainerState
    files: dict[str, str]

    def load_weights(self) -> dict[str, Tensor]:
        """Model weights by name, verified."""
        return self._load(WEIGHTS)

    def load_moments(self) -> dict[str, Tensor]:
        """Adam moments by ``<moment>.<name>``, verified."""
        return self._load(MOMENTS)

    def load_ema(self) -> dict[str, Tensor] | None:
        """Averaged weights by name, verified; None where the run keeps none."""
        return self._load(AVERAGES) if AVERAGES in self.files else None

    def load_best_weights(self) -> dict[str, Tensor]:
        """The averaged weights of a run that keeps them, otherwise the weights."""
        return self.load_ema() or self.load_weights()

    def _load(self, name: str) -> dict[str, Tensor]:
        return load_tensors(storage.read_bytes(storage.join(self.uri, name), sha256=self.files[name]))


def checkpoints_uri(store: str, run: str) -> str:
    """Where a run's checkpoints lie."""
    return storage.join(store, "runs", run, "checkpoints")


@dataclass(frozen=True)
class Snapshot:
    """Copies on the host of what a checkpoint holds; empty on all ranks but the first."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    averages: dict[str, Tensor] | None = None


def save_checkpoint(
    folder: str,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    state: TrainerState,
    *,
    averages: dict[str, Tensor] | None = None,
) -> Checkpoint:
    """Write one checkpoint below ``folder``, committed last; a damaged one of the same step is replaced."""
    uri = storage.join(folder, f"step-{state.step:09d}")
    storage.delete(storage.join(uri, COMMIT))
    failpoint("checkpoint.before_files")
    files = {
        WEIGHTS: storage.write_digested(storage.join(uri, WEIGHTS), save_tensors(weights)),
        MOMENTS: storage.write_digested(storage.join(uri, MOMENTS), save_tensors(moments)),
    }
    if averages is not None:
        files[AVERAGES] = storage.write_digested(storage.join(uri, AVERAGES), save_tensors(averages))
    files[STATE] = storage.write_digested(storage.join(uri, STATE), state.model_dump_json().encode())
    failpoint("checkpoint.before_commit")
    checkpoint = Checkpoint(uri=uri, state=state, files=files)
    commit = _Commit(files=files, attempt=uuid.uuid4().hex, metric=state.metric)
    storage.put_if_absent(storage.join(uri, COMMIT), commit.model_dump_json().encode())
    failpoint("checkpoint.after_commit")
    return checkpoint


class CheckpointWriter:
    """Writes checkpoints one after another in a thread of its own, so that training need not wait for the store."""

    def __init__(self, folder: str, *, keep: int) -> None:
        """``folder`` of the checkpoints, the newest ``keep`` of which stay beside the best."""
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cytoray-checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, snapshot: Snapshot, state: TrainerState) -> None:
        """Have a checkpoint written; waits for the one before, and raises what went wrong with that."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot, state)

    def wait(self) -> None:
        """Wait until everything is committed; raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, snapshot: Snapshot, state: TrainerState) -> None:
        save_checkpoint(self._folder, snapshot.weights, snapshot.moments, state, averages=snapshot.averages)
        sweep(self._folder, keep=self._keep)


def latest_checkpoint(store: str, run: str) -> Checkpoint | None:
    """The newest committed checkpoint that is intact, or None; damaged newer ones are named in the log."""
    for uri in reversed(_committed(checkpoints_uri(store, run))):
        if (checkpoint := _open_intact(uri)) is not None:
            return checkpoint
    return None


def best_checkpoint(store: str, run: str) -> Checkpoint | None:
    """The intact checkpoint with the lowest error on the cells held out; None where no checkpoint knows one."""
    committed = _committed(checkpoints_uri(store, run))
    judged = {uri: metric for uri in committed if (metric := _metric(uri)) is not None}
    for uri in sorted(judged, key=lambda uri: judged[uri]):
        if (checkpoint := _open_intact(uri)) is not None:
            return checkpoint
    return None


def _open_intact(uri: str) -> Checkpoint | None:
    """A checkpoint whose every file is as its commit says; None, and a line in the log, if one is not."""
    try:
        files = _read_commit(uri).files
        for name in files:
            storage.read_bytes(storage.join(uri, name), sha256=files[name])
        data = storage.read_bytes(storage.join(uri, STATE), sha256=files[STATE])
        return Checkpoint(uri=uri, state=TrainerState.model_validate_json(data), files=files)
    except (DigestError, NotFoundError, ValidationError) as error:
        logger.warning("checkpoint %s is damaged, the one before is used: %s", uri, error)
        return None


def _metric(uri: str) -> float | None:
    """The error on the cells held out that a commit names; None where it names none or cannot be read."""
    try:
        return _read_commit(uri).metric
    except (NotFoundError, ValidationError):
        return None


def _read_commit(uri: str) -> _Commit:
    return _Commit.model_validate_json(storage.read_bytes(storage.join(uri, COMMIT)))


def require_checkpoint(store: str, run: str) -> Checkpoint:
    """The newest committed checkpoint; TrainingError if the run has none."""
    checkpoint = latest_checkpoint(store, run)
    if checkpoint is None:
        raise TrainingError(
            f"Run {run!r} has no committed checkpoint in {store}.",
            remedy="Run its training first, or name another run.",
        )
    return checkpoint


def sweep(folder: str, *, keep: int) -> None:
    """Delete all but the newest ``keep`` committed checkpoints and the best; COMMIT goes first, so none is half there.

    What was left uncommitted before the newest goes as well.
    """
    committed = _committed(folder)
    judged = {uri: metric for uri in committed if (metric := _metric(uri)) is not None}
    kept = {*committed[-keep:], *([min(judged, key=lambda uri: judged[uri])] if judged else ())}
    folders = {
        storage.join(folder, uri.removeprefix(folder).strip("/").partition("/")[0])
        for uri in storage.list_files(folder)
    }
    for uri in sorted(folders):
        if uri not in kept and committed and uri < committed[-1]:
            storage.delete(storage.join(uri, COMMIT))
            storage.delete_prefix(uri)


def _committed(folder: str) -> list[str]:
    """Folders of committed checkpoints, oldest first."""
    suffix = f"/{COMMIT}"
    return sorted(uri.removesuffix(suffix) for uri in storage.list_files(folder) if uri.endswith(suffix))
