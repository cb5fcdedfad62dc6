"""How the parts of all ranks become one checkpoint: files first, then a record a rank, and COMMIT when all are there.

Records carry the id of the attempt that wrote them, so that those a dead attempt has left are never counted.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Self

from pydantic import Field, ValidationError, model_validator
from safetensors.torch import save as save_tensors

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import DigestError, NotFoundError, TrainingError
from cytoray.training.slices import Snapshot, encode_slices

logger = logging.getLogger(__name__)
COMMIT = "COMMIT.json"
WEIGHTS, AVERAGES, STATE = "model.safetensors", "ema.safetensors", "state.json"
SLICES = "optimizer-"
LOCAL_POLL_S, REMOTE_POLL_S = 0.05, 0.5


class Layout(Config):
    """How the optimiser's state is spread over files."""

    world_size: int = 1
    zero_stage: int = 0
    has_master: bool = Field(False, description="Whether slices hold fp32 weights that count before the whole ones.")


class Commit(Config):
    """``COMMIT.json``: the files that count, by their SHA-256."""

    files: dict[str, str]
    attempt: str
    metric: float | None = Field(None, description="Error on the cells held out; less is better.")
    layout: Layout

    @model_validator(mode="after")
    def _names_its_files(self) -> Self:
        if not {WEIGHTS, STATE, slices_name(0, self.layout.world_size)} <= self.files.keys():
            raise ValueError("a commit must name weights, state and slices of the optimiser's state")
        return self


def slices_name(rank: int, world_size: int) -> str:
    """The file with the slices of one rank."""
    return f"{SLICES}{rank:05d}-of-{world_size:05d}.safetensors"


def read_commit(uri: str) -> Commit:
    """The commit of a checkpoint folder; NotFoundError if there is none, DigestError if it is not readable."""
    data = storage.read_bytes(storage.join(uri, COMMIT))
    try:
        return Commit.model_validate_json(data)
    except ValidationError as error:
        problem = f"{storage.join(uri, COMMIT)}: this is not the commit of a checkpoint."
        raise DigestError(problem, remedy="Delete this checkpoint.", uri=uri) from error


def is_intact(uri: str) -> bool:
    """Whether a folder is committed and every file is as its commit says."""
    try:
        for name, digest in read_commit(uri).files.items():
            storage.read_bytes(storage.join(uri, name), sha256=digest)
    except NotFoundError:
        return False
    except DigestError as error:
        logger.warning("checkpoint %s is damaged, and written anew: %s", uri, error)
        return False
    return True


def write_part(uri: str, snapshot: Snapshot, state: bytes, *, attempt: str) -> None:
    """Write the files of one rank, and then the record that says so; ``state`` goes with rank 0."""
    contents = {slices_name(snapshot.rank, snapshot.world_size): encode_slices(snapshot.slices)}
    if snapshot.rank == 0:
        contents |= {WEIGHTS: save_tensors(snapshot.weights), STATE: state}
        if snapshot.averages is not None:
            contents[AVERAGES] = save_tensors(snapshot.averages)
    files = {name: storage.write_digested(storage.join(uri, name), data) for name, data in contents.items()}
    record = storage.join(uri, _record_name(snapshot.rank, snapshot.world_size, attempt))
    storage.write_bytes(record, json.dumps(files).encode())


def collect_parts(uri: str, world_size: int, *, attempt: str, timeout_s: float) -> dict[str, str]:
    """Wait for the records of all ranks of an attempt; digests of their files by name.

    TrainingError names the ranks whose record is not there in time.
    """
    wanted = {_record_name(rank, world_size, attempt): rank for rank in range(world_size)}
    deadline = time.monotonic() + timeout_s
    while True:
        there = {entry.rpartition("/")[2] for entry in storage.list_files(uri)}
        missing = [rank for name, rank in wanted.items() if name not in there]
        if not missing:
            break
        if time.monotonic() > deadline:
            raise TrainingError(
                f"{uri}: the parts of ranks {missing} were not there after {timeout_s:g} s, so it is not committed.",
                remedy="Look for what these ranks say in the log; the checkpoint before is intact.",
                ranks=missing,
            )
        time.sleep(REMOTE_POLL_S if storage.is_remote(uri) else LOCAL_POLL_S)
    files: dict[str, str] = {}
    for name in wanted:
        files |= json.loads(storage.read_bytes(storage.join(uri, name)))
    return files


def tidy(uri: str, files: dict[str, str]) -> None:
    """Delete what a committed folder has beside its files: records, and what dead attempts have left."""
    kept = {COMMIT, *files}
    for entry in storage.list_files(uri):
        if entry.rpartition("/")[2] not in kept:
            storage.delete(entry)


def _record_name(rank: int, world_size: int, attempt: str) -> str:
    """The record of one rank's part."""
    assert "/" not in attempt, "an attempt id is part of a file name"
    return f"part-{rank:05d}-of-{world_size:05d}-{attempt}.json"
