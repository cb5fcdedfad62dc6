"""Checkpoints: full weights and Adam moments by name as safetensors, restored at any world size; COMMIT comes last.

``<run>/checkpoints/step-000000020/{model,optimizer}.safetensors, state.json, COMMIT.json``: a folder without COMMIT
does not exist for any reader, and COMMIT lists the SHA-256 of every file.
"""

from __future__ import annotations

import json
import logging
import uuid
from concurrent.futures import Future, ThreadPoolExecutor

from pydantic import Field
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import DigestError, NotFoundError, TrainingError
from cytoray.failpoints import failpoint

logger = logging.getLogger(__name__)
COMMIT = "COMMIT.json"
WEIGHTS, MOMENTS, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class TrainerState(Config):
    """What the loop needs to go on: the step, and what it belongs to."""

    step: int = Field(description="Steps done; also the next step to do.")
    manifest_digest: str
    config_digest: str
    history: tuple[dict[str, float], ...] = Field(description="Losses at about 200 evenly spaced steps, with `step`.")


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

    def _load(self, name: str) -> dict[str, Tensor]:
        return load_tensors(storage.read_bytes(storage.join(self.uri, name), sha256=self.files[name]))


def checkpoints_uri(store: str, run: str) -> str:
    """Where a run's checkpoints lie."""
    return storage.join(store, "runs", run, "checkpoints")


def save_checkpoint(
    folder: str, weights: dict[str, Tensor], moments: dict[str, Tensor], state: TrainerState
) -> Checkpoint:
    """Write one checkpoint below ``folder``, committed last; a damaged one of the same step is replaced."""
    uri = storage.join(folder, f"step-{state.step:09d}")
    storage.delete(storage.join(uri, COMMIT))
    files = {
        WEIGHTS: storage.write_digested(storage.join(uri, WEIGHTS), save_tensors(weights)),
        MOMENTS: storage.write_digested(storage.join(uri, MOMENTS), save_tensors(moments)),
        STATE: storage.write_digested(storage.join(uri, STATE), state.model_dump_json().encode()),
    }
    failpoint("checkpoint.before_commit")
    checkpoint = Checkpoint(uri=uri, state=state, files=files)
    commit = {"files": files, "attempt": uuid.uuid4().hex}
    storage.put_if_absent(storage.join(uri, COMMIT), json.dumps(commit).encode())
    failpoint("checkpoint.after_commit")
    return checkpoint


class CheckpointWriter:
    """Writes checkpoints one after another in a thread of its own, so that training need not wait for the store."""

    def __init__(self, folder: str, *, keep: int) -> None:
        """``folder`` of the checkpoints, the newest ``keep`` of which stay."""
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cytoray-checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, weights: dict[str, Tensor], moments: dict[str, Tensor], state: TrainerState) -> None:
        """Have a checkpoint written; waits for the one before, and raises what went wrong with that."""
        self.wait()
        self._pending = self._thread.submit(self._write, weights, moments, state)

    def wait(self) -> None:
        """Wait until everything is committed; raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, weights: dict[str, Tensor], moments: dict[str, Tensor], state: TrainerState) -> None:
        save_checkpoint(self._folder, weights, moments, state)
        sweep(self._folder, keep=self._keep)


def latest_checkpoint(store: str, run: str) -> Checkpoint | None:
    """The newest committed checkpoint whose state is intact, or None; damaged newer ones are named in the log."""
    for uri in reversed(_committed(checkpoints_uri(store, run))):
        try:
            files = json.loads(storage.read_bytes(storage.join(uri, COMMIT)))["files"]
            for name in (WEIGHTS, MOMENTS):
                storage.read_bytes(storage.join(uri, name), sha256=files[name])
            data = storage.read_bytes(storage.join(uri, STATE), sha256=files[STATE])
            return Checkpoint(uri=uri, state=TrainerState.model_validate_json(data), files=files)
        except (DigestError, NotFoundError) as error:
            logger.warning("checkpoint %s is damaged, the one before is used: %s", uri, error)
    return None


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
    """Delete all but the newest ``keep`` committed checkpoints; COMMIT goes first, so none is ever half there."""
    for uri in _committed(folder)[:-keep]:
        storage.delete(storage.join(uri, COMMIT))
        storage.delete_prefix(uri)


def _committed(folder: str) -> list[str]:
    """Folders of committed checkpoints, oldest first."""
    suffix = f"/{COMMIT}"
    return sorted(uri.removesuffix(suffix) for uri in storage.list_files(folder) if uri.endswith(suffix))
