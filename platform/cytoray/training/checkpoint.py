"""Checkpoints: weights and, by ranks, slices of the optimiser's state; restored at any world size and stage.

``<run>/checkpoints/step-000000020/``: ``model.safetensors`` (whole weights and buffers; those that are sharded or have
an fp32 master are in the slices, as ``master.NAME``), ``ema.safetensors`` if weights are averaged,
``optimizer-RANK-of-WORLD.safetensors``, ``state.json`` and, last, ``COMMIT.json``. Readers ignore
a folder without COMMIT, which lists the SHA-256 of every file.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pydantic import Field, ValidationError
from safetensors.torch import load as load_tensors
from torch import Tensor

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import ConflictError, DigestError, NotFoundError, TrainingError
from cytoray.failpoints import failpoint
from cytoray.runs import run_folder
from cytoray.training import commit as commits
from cytoray.training import metrics
from cytoray.training.commit import AVERAGES, COMMIT, SLICES, STATE, WEIGHTS
from cytoray.training.lease import Lease
from cytoray.training.slices import MASTER, MOMENTS, Slice, Snapshot, assemble, decode_slices

logger = logging.getLogger(__name__)
STEP = "step-"


class TrainerState(Config):
    """The state that the loop needs to continue: the step, and the run it belongs to."""

    step: int = Field(description="Steps done; also the next step to do.")
    manifest_digest: str
    config_digest: str
    history: tuple[dict[str, float], ...] = Field(description="Figures of about 200 evenly spaced steps, with `step`.")
    validation: tuple[dict[str, float], ...] = Field((), description="Validation results, by step.")
    num_updates: int | None = Field(
        None, description="Optimiser updates done (Adam's step count); None if equal to steps."
    )
    skipped: tuple[int, ...] = Field((), description="Steps skipped because their gradient was not finite.")
    metric: float | None = Field(None, description="Validation error at this step; lower is better.")
    selected_by: str = Field("", description="Name of the validation error that `metric` is; empty before the first.")
    versions: dict[str, str] = Field({}, description="Versions of packages that may affect results.")
    world_size: int = 1
    zero_stage: int = 0
    elapsed_s: float = Field(0.0, description="Training time so far, over all starts.")


class Checkpoint(Config):
    """A committed checkpoint, the digests of its files, and the layout of the optimiser's state."""

    uri: str
    state: TrainerState
    files: dict[str, str]
    layout: commits.Layout = commits.Layout()

    def load_weights(self) -> dict[str, Tensor]:
        """Load the model weights by name in fp32, verified; with bf16 these are the optimiser's masters."""
        weights = self._load(WEIGHTS)
        if self.layout.has_master:
            masters = assemble(self.read_slices(), kind=MASTER)
            weights |= {name.removeprefix(f"{MASTER}."): tensor for name, tensor in masters.items()}
        return weights

    def load_ema(self) -> dict[str, Tensor] | None:
        """Load the averaged weights by name, verified; None if the run keeps none."""
        return self._load(AVERAGES) if AVERAGES in self.files else None

    def load_best_weights(self) -> dict[str, Tensor]:
        """Load the averaged weights if the run keeps them, otherwise the weights."""
        return self.load_ema() or self.load_weights()

    def load_moments(self) -> dict[str, Tensor]:
        """Load the Adam moments by ``<moment>.<name>`` in their full shapes, verified."""
        return assemble(self.read_slices(), kind=MOMENTS[0])  # the name of the second begins with that of the first

    def read_slices(self, *, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Slice]]:
        """Yield the verified files of slices one by one, those that probably belong to ``rank`` first."""
        names = sorted(name for name in self.files if name.startswith(SLICES))
        # Compare the middle of this rank's share with that of each file; with equal world sizes they match one to one.
        mine = (rank + 0.5) / world_size
        for index in sorted(range(len(names)), key=lambda index: abs((index + 0.5) / len(names) - mine)):
            yield decode_slices(self._read(names[index]))

    def _load(self, name: str) -> dict[str, Tensor]:
        return load_tensors(self._read(name))

    def _read(self, name: str) -> bytes:
        return storage.read_bytes(storage.join(self.uri, name), sha256=self.files[name])


def checkpoints_uri(store: str, run: str) -> str:
    """Return the folder of a run's checkpoints."""
    return storage.join(run_folder(store, run), "checkpoints")


def save_checkpoint(
    folder: str,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    state: TrainerState,
    *,
    averages: dict[str, Tensor] | None = None,
) -> Checkpoint:
    """Write whole tensors as one checkpoint below ``folder``, committed last.

    An intact checkpoint of the same step is kept; a damaged one is replaced.
    """
    slices = {name: Slice.whole(tensor) for name, tensor in moments.items()}
    writer = CheckpointWriter(folder, keep=None, attempt=uuid.uuid4().hex, timeout_s=60)
    writer.submit(Snapshot(weights, slices, averages), state)
    writer.wait()
    return _open(_step_uri(folder, state))


class CheckpointWriter:
    """Writes one rank's parts in a background thread, so that training does not wait for the store.

    Every rank has one; that of rank 0 also waits for the parts of the others and commits.
    """

    def __init__(
        self, folder: str, *, keep: int | None, attempt: str, timeout_s: float, lease: Lease | None = None
    ) -> None:
        """Write below ``folder``, keeping the newest ``keep`` checkpoints and the best; None keeps all.

        ``attempt`` is shared by all ranks of one start of the workers and never used again. Rank 0 waits ``timeout_s``
        for the parts of the others. Nothing is written once the ``lease`` is lost.
        """
        self._folder, self._keep, self._lease = folder, keep, lease
        self._attempt, self._timeout_s = attempt, timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cytoray-checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, snapshot: Snapshot, state: TrainerState) -> None:
        """Start writing a checkpoint; first waits for the previous one and raises its error."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot, state)

    def wait(self) -> None:
        """Wait until this rank's part is written and, on rank 0, committed; raises its error, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, snapshot: Snapshot, state: TrainerState) -> None:
        """Write this rank's part, unless the folder is committed and intact."""
        uri = _step_uri(self._folder, state)
        self._check_lease()
        # All ranks reach the same answer here, since a folder is committed only after all parts are written.
        if commits.is_intact(uri):
            logger.info("checkpoint %s is already committed", uri)
            return
        if snapshot.rank == 0:
            storage.delete(storage.join(uri, COMMIT))
        failpoint("checkpoint.before_part")
        commits.write_part(uri, snapshot, state.model_dump_json().encode(), attempt=self._attempt)
        failpoint("checkpoint.after_part")
        if snapshot.rank == 0:
            self._commit(uri, snapshot, state)

    def _commit(self, uri: str, snapshot: Snapshot, state: TrainerState) -> None:
        """Wait for the parts of all ranks, commit them, and delete what is no longer needed."""
        world_size = snapshot.world_size
        files = commits.collect_parts(uri, world_size, attempt=self._attempt, timeout_s=self._timeout_s)
        layout = commits.Layout(world_size=world_size, zero_stage=snapshot.zero_stage, has_master=snapshot.has_master)
        commit = commits.Commit(files=files, attempt=self._attempt, metric=state.metric, layout=layout)
        failpoint("checkpoint.before_commit")
        self._check_lease()
        try:
            storage.put_if_absent(storage.join(uri, COMMIT), commit.model_dump_json().encode())
        except ConflictError:
            if not commits.is_intact(uri):
                raise
        failpoint("checkpoint.after_commit")
        metrics.note_checkpoint(self._folder)
        self._tidy(uri)

    def clean_up(self) -> None:
        """Delete what is no longer needed, as a process that was killed just after its last commit did not."""
        if committed := _committed(self._folder):
            self._tidy(committed[-1])

    def _tidy(self, uri: str) -> None:
        """Delete files that the commit of the newest checkpoint does not name, and older checkpoints."""
        commits.tidy(uri, commits.read_commit(uri).files)
        if self._keep is not None:
            sweep(self._folder, keep=self._keep)

    def _check_lease(self) -> None:
        """Raise LeaseLostError if another driver has taken the run over."""
        if self._lease is not None:
            self._lease.check()


def latest_checkpoint(store: str, run: str, *, verify: bool = True) -> Checkpoint | None:
    """Find the newest committed checkpoint that is intact, or None; damaged newer ones are logged.

    Without ``verify`` only COMMIT and the state are read.
    """
    for uri in reversed(_committed(checkpoints_uri(store, run))):
        if (checkpoint := _open_intact(uri, verify=verify)) is not None:
            return checkpoint
    return None


def damaged_checkpoints(store: str, run: str, newest: Checkpoint | None) -> list[str]:
    """Names of the committed checkpoints after ``newest``, the newest intact one."""
    return [
        uri.rpartition("/")[2] for uri in _committed(checkpoints_uri(store, run)) if newest is None or uri > newest.uri
    ]


def best_checkpoint(store: str, run: str) -> Checkpoint | None:
    """Find the intact checkpoint with the lowest validation error; None if none has one."""
    judged = _judged(_committed(checkpoints_uri(store, run)))
    for uri in sorted(judged, key=lambda uri: judged[uri]):
        if (checkpoint := _open_intact(uri)) is not None:
            return checkpoint
    return None


def _open(uri: str) -> Checkpoint:
    """Open a checkpoint by its commit; only the state is verified."""
    commit = commits.read_commit(uri)
    data = storage.read_bytes(storage.join(uri, STATE), sha256=commit.files[STATE])
    state = TrainerState.model_validate_json(data)
    return Checkpoint(uri=uri, state=state, files=commit.files, layout=commit.layout)


def _open_intact(uri: str, *, verify: bool = True) -> Checkpoint | None:
    """Open a checkpoint whose files all match its commit; None, with a warning, if one does not."""
    try:
        checkpoint = _open(uri)
        for name in checkpoint.files if verify else ():
            storage.read_bytes(storage.join(uri, name), sha256=checkpoint.files[name])
    except (DigestError, NotFoundError, ValidationError) as error:
        logger.warning("checkpoint %s is damaged, the previous one is used: %s", uri, error)
        return None
    return checkpoint


def _judged(uris: list[str]) -> dict[str, float]:
    """Validation errors of the checkpoints whose commit has one."""
    found = {}
    for uri in uris:
        try:
            metric = commits.read_commit(uri).metric
        except (DigestError, NotFoundError) as error:
            logger.warning("checkpoint %s is damaged: %s", uri, error)
            continue
        if metric is not None:
            found[uri] = metric
    return found


def require_checkpoint(store: str, run: str) -> Checkpoint:
    """Find the newest committed checkpoint; TrainingError if the run has none."""
    checkpoint = latest_checkpoint(store, run)
    if checkpoint is None:
        raise TrainingError(
            f"Run {run!r} has no committed checkpoint in {store}.",
            remedy="Run its training first, or name another run.",
        )
    return checkpoint


def sweep(folder: str, *, keep: int) -> None:
    """Delete all but the newest ``keep`` committed checkpoints and the best; COMMIT is deleted first.

    Uncommitted folders older than the newest checkpoint are deleted too.
    """
    committed = _committed(folder)
    if not committed:
        return
    judged = _judged(committed)
    kept = {*committed[-keep:], *([min(judged, key=lambda uri: judged[uri])] if judged else ())}
    folders = {uri.rpartition("/")[0] for uri in storage.list_files(folder)}
    for uri in sorted(folders - kept):
        if uri.rpartition("/")[2].startswith(STEP) and uri < committed[-1]:
            storage.delete(storage.join(uri, COMMIT))
            storage.delete_prefix(uri)


def _step_uri(folder: str, state: TrainerState) -> str:
    """Return the folder of the checkpoint at a step."""
    return storage.join(folder, f"{STEP}{state.step:09d}")


def _committed(folder: str) -> list[str]:
    """Folders of committed checkpoints, oldest first."""
    suffix = f"/{COMMIT}"
    return sorted(uri.removesuffix(suffix) for uri in storage.list_files(folder) if uri.endswith(suffix))
