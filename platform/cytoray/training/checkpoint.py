"""Checkpoints: weights and, by ranks, slices of the optimiser's state; restored at any world size and stage.

``<run>/checkpoints/step-000000020/``: ``model.safetensors`` (whole weights and buffers; those that are sharded or have
an fp32 master are in the slices, as ``master.NAME``), ``ema.safetensors`` if weights are averaged,
``optimizer-RANK-of-WORLD.safetensors``, ``state.json`` and, last, ``COMMIT.json``. A folder without COMMIT does not
exist for any reader, and COMMIT lists the SHA-256 of every file.
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
from cytoray.training import commit as commits
from cytoray.training.commit import AVERAGES, COMMIT, SLICES, STATE, WEIGHTS
from cytoray.training.lease import Lease
from cytoray.training.record import run_folder
from cytoray.training.slices import MASTER, MOMENTS, Slice, Snapshot, assemble, decode_slices

logger = logging.getLogger(__name__)
STEP = "step-"


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


class Checkpoint(Config):
    """A committed checkpoint, the digests of its files, and how the optimiser's state is spread over them."""

    uri: str
    state: TrainerState
    files: dict[str, str]
    layout: commits.Layout = commits.Layout()

    def load_weights(self) -> dict[str, Tensor]:
        """Model weights by name in fp32, verified; of a run with bf16 these are the optimiser's masters."""
        weights = self._load(WEIGHTS)
        if self.layout.has_master:
            masters = assemble(self.read_slices(), kind=MASTER)
            weights |= {name.removeprefix(f"{MASTER}."): tensor for name, tensor in masters.items()}
        return weights

    def load_ema(self) -> dict[str, Tensor] | None:
        """Averaged weights by name, verified; None where the run keeps none."""
        return self._load(AVERAGES) if AVERAGES in self.files else None

    def load_best_weights(self) -> dict[str, Tensor]:
        """The averaged weights of a run that keeps them, otherwise the weights."""
        return self.load_ema() or self.load_weights()

    def load_moments(self) -> dict[str, Tensor]:
        """Adam moments by ``<moment>.<name>`` in their full shapes, verified."""
        return assemble(self.read_slices(), kind=MOMENTS[0])  # the name of the second begins with that of the first

    def read_slices(self, *, rank: int = 0, world_size: int = 1) -> Iterator[dict[str, Slice]]:
        """The files of slices one after the other, verified; first what is likely to be that rank's own."""
        names = sorted(name for name in self.files if name.startswith(SLICES))
        # The middle of this rank's share of everything, and of each file's: files of as many ranks fit one to one.
        mine = (rank + 0.5) / world_size
        for index in sorted(range(len(names)), key=lambda index: abs((index + 0.5) / len(names) - mine)):
            yield decode_slices(self._read(names[index]))

    def _load(self, name: str) -> dict[str, Tensor]:
        return load_tensors(self._read(name))

    def _read(self, name: str) -> bytes:
        return storage.read_bytes(storage.join(self.uri, name), sha256=self.files[name])


def checkpoints_uri(store: str, run: str) -> str:
    """Where a run's checkpoints lie."""
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

    One of the same step stays as it is if it is intact, and is replaced if it is damaged.
    """
    slices = {name: Slice.whole(tensor) for name, tensor in moments.items()}
    writer = CheckpointWriter(folder, keep=None, attempt=uuid.uuid4().hex, timeout_s=60)
    writer.submit(Snapshot(weights, slices, averages), state)
    writer.wait()
    return _open(_step_uri(folder, state))


class CheckpointWriter:
    """Writes one rank's parts in a thread of its own, so that training need not wait for the store.

    Every rank has one; that of rank 0 also waits for the parts of the others, and commits.
    """

    def __init__(
        self, folder: str, *, keep: int | None, attempt: str, timeout_s: float, lease: Lease | None = None
    ) -> None:
        """``folder`` of the checkpoints, the newest ``keep`` of which stay beside the best; None keeps all.

        ``attempt`` is the same on all ranks that train together, and on none that trained before. Rank 0 waits
        ``timeout_s`` for the parts of the others. Nothing is written once the ``lease`` is lost.
        """
        self._folder, self._keep, self._lease = folder, keep, lease
        self._attempt, self._timeout_s = attempt, timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cytoray-checkpoint")
        self._pending: Future[None] | None = None

    def submit(self, snapshot: Snapshot, state: TrainerState) -> None:
        """Have a checkpoint written; waits for the one before, and raises what went wrong with that."""
        self.wait()
        self._pending = self._thread.submit(self._write, snapshot, state)

    def wait(self) -> None:
        """Wait until this rank's part is written and, on rank 0, committed; raises what went wrong, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, snapshot: Snapshot, state: TrainerState) -> None:
        """Write this rank's part; a folder that is committed and intact stays as it is."""
        uri = _step_uri(self._folder, state)
        self._check_lease()
        # All ranks come to the same answer here, since no folder is committed without the parts of all.
        if commits.is_intact(uri):
            logger.info("checkpoint %s has been committed before", uri)
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
        commits.tidy(uri, commits.read_commit(uri).files)
        if self._keep is not None:
            sweep(self._folder, keep=self._keep)

    def _check_lease(self) -> None:
        """Raise LeaseLostError if another driver has taken the run over."""
        if self._lease is not None:
            self._lease.check()


def latest_checkpoint(store: str, run: str, *, verify: bool = True) -> Checkpoint | None:
    """The newest committed checkpoint that is intact, or None; damaged newer ones are named in the log.

    Without ``verify`` only COMMIT and the state are read.
    """
    for uri in reversed(_committed(checkpoints_uri(store, run))):
        if (checkpoint := _open_intact(uri, verify=verify)) is not None:
            return checkpoint
    return None


def damaged_checkpoints(store: str, run: str, newest: Checkpoint | None) -> list[str]:
    """Names of the committed checkpoints after ``newest``, the newest that is intact."""
    return [
        uri.rpartition("/")[2] for uri in _committed(checkpoints_uri(store, run)) if newest is None or uri > newest.uri
    ]


def best_checkpoint(store: str, run: str) -> Checkpoint | None:
    """The intact checkpoint with the lowest error on the cells held out; None where no checkpoint knows one."""
    judged = _judged(_committed(checkpoints_uri(store, run)))
    for uri in sorted(judged, key=lambda uri: judged[uri]):
        if (checkpoint := _open_intact(uri)) is not None:
            return checkpoint
    return None


def _open(uri: str) -> Checkpoint:
    """A checkpoint by its commit; the state alone is verified."""
    commit = commits.read_commit(uri)
    data = storage.read_bytes(storage.join(uri, STATE), sha256=commit.files[STATE])
    state = TrainerState.model_validate_json(data)
    return Checkpoint(uri=uri, state=state, files=commit.files, layout=commit.layout)


def _open_intact(uri: str, *, verify: bool = True) -> Checkpoint | None:
    """A checkpoint whose every file is as its commit says; None, and a line in the log, if one is not."""
    try:
        checkpoint = _open(uri)
        for name in checkpoint.files if verify else ():
            storage.read_bytes(storage.join(uri, name), sha256=checkpoint.files[name])
    except (DigestError, NotFoundError, ValidationError) as error:
        logger.warning("checkpoint %s is damaged, the one before is used: %s", uri, error)
        return None
    return checkpoint


def _judged(uris: list[str]) -> dict[str, float]:
    """The error on the cells held out, of those checkpoints whose commit names one."""
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
    """The folder of the checkpoint after so many steps."""
    return storage.join(folder, f"{STEP}{state.step:09d}")


def _committed(folder: str) -> list[str]:
    """Folders of committed checkpoints, oldest first."""
    suffix = f"/{COMMIT}"
    return sorted(uri.removesuffix(suffix) for uri in storage.list_files(folder) if uri.endswith(suffix))
