"""The state of jobs as files in a store, so that a request, a replica or the whole service may end without losing one.

A job is the folder ``jobs/ID``: ``spec.json`` says what is to be done and never changes, ``attempts/NNNN.json`` claim
it for a process, ``beat.json`` is that process' sign of life, ``cancel`` asks it to stop and ``end.json`` is how it
ended, put if absent: there is one end. ``queue/ID`` exists until the end has been noticed, ``ended/ID`` from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from cytoray import storage
from cytoray.config import Config
from cytoray.errors import ConflictError
from cytoray.serving.jobs.messages import Format, JobInput, JobProblem, JobResult, Outcome
from cytoray.tasks.messages import Message, ModelInfo

ID = re.compile(r"[ju][0-9a-f]{28}")
Record = TypeVar("Record", bound=Message)


class JobSpec(Message):
    """A job to be done; nothing in it depends on aliases or versions that change."""

    id: str
    owner: str
    created: float
    task: str
    input: JobInput
    format: Format
    parameters: dict[str, Any]
    model: ModelInfo
    uri: str  # of the cells
    name: str | None  # of the source, if it is an upload
    sha256: str | None = None  # of the file, if it is to be verified
    key: str | None = None  # of the record of its Idempotency-Key


class Beat(Message):
    """A sign of life of the process that works on a job, and how far it is."""

    attempt: int
    host: str
    process: str  # see ``alive.describe_process``
    started: float
    number: int = 0
    done: int = 0
    total: int | None = None
    rate: float | None = None


class Attempt(Message):
    """A claim to a job by the process that starts one for it."""

    done: int  # cells that had been answered
    host: str
    process: str  # see ``alive.describe_process``
    nonce: str
    is_excused: bool = False  # it was ended because the service was


class JobEnd(Message):
    """How a job ended."""

    state: Outcome
    ended: float
    num_empty: int | None = None
    warnings: tuple[str, ...] = ()
    problem: JobProblem | None = None
    result: JobResult | None = None


def new_id(kind: str) -> str:
    """Return a new id; those of later jobs sort behind those of earlier ones."""
    return f"{kind}{int(time.time() * 1000):012x}{secrets.token_hex(8)}"


def created_at(job_id: str) -> float:
    """Return when an id was made, in seconds since 1970."""
    return int(job_id[1:13], 16) / 1000


def owner_key(owner: str) -> str:
    """Return the name of an owner's folder."""
    return hashlib.sha256(owner.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class JobFolder:
    """The files of one job."""

    root: str
    id: str

    @property
    def uri(self) -> str:
        """The folder of the job."""
        return storage.join(self.root, "jobs", self.id)

    @property
    def answers(self) -> str:
        """The folder of the answers to parts of the cells, which a later attempt keeps."""
        return storage.join(self.uri, "answers")

    def result(self, name: str) -> str:
        """The file of the result."""
        return storage.join(self.uri, "result", name)

    def spec(self) -> JobSpec | None:
        """Return the job to be done; None if it does not exist."""
        return self._load("spec.json", JobSpec)

    def beat(self) -> Beat | None:
        """Return the last sign of life."""
        return self._load("beat.json", Beat)

    def end(self) -> JobEnd | None:
        """Return how it ended; None if it has not."""
        return self._load("end.json", JobEnd)

    def write_beat(self, beat: Beat) -> None:
        """Replace the sign of life."""
        storage.write_bytes(self._file("beat.json"), beat.model_dump_json().encode())

    def finish(self, end: JobEnd) -> bool:
        """End the job; returns False if it has ended before."""
        return self._put("end.json", end.model_dump_json().encode())

    def cancel(self) -> None:
        """Ask for its end."""
        storage.write_bytes(self._file("cancel"), b"1")

    def is_cancelled(self) -> bool:
        """Return whether it was asked to end."""
        return storage.exists(self._file("cancel"))

    def charge(self) -> bool:
        """Return True the first time: the cells of a job are counted once."""
        return self._put("charged", secrets.token_bytes(8))

    def attempts(self) -> list[Attempt]:
        """Return all attempts so far."""
        found = (load(uri, Attempt) for uri in storage.list_files(self._file("attempts")))
        return [attempt for attempt in found if attempt is not None]

    def num_attempts(self) -> int:
        """Return the number of attempts so far."""
        return len(storage.list_files(self._file("attempts")))

    def claim(self, number: int, attempt: Attempt) -> bool:
        """Begin an attempt, numbered from 1; returns False if another keeper was first."""
        return self._put(f"attempts/{number:04d}.json", attempt.model_dump_json().encode())

    def excuse(self) -> None:
        """Note that the last attempt was ended on purpose."""
        if attempts := self.attempts():
            excused = attempts[-1].model_copy(update={"is_excused": True})
            storage.write_bytes(self._file(f"attempts/{len(attempts):04d}.json"), excused.model_dump_json().encode())

    def note_end(self) -> bool:
        """Return True the first time: the end of a job is counted once."""
        return self._put("noted", secrets.token_bytes(8))

    def delete_result(self) -> None:
        """Delete the result."""
        storage.delete_prefix(storage.join(self.uri, "result"))

    def delete_work(self) -> None:
        """Delete the answers to parts."""
        storage.delete_prefix(self.answers)

    def _file(self, name: str) -> str:
        return storage.join(self.uri, name)

    def _put(self, name: str, data: bytes) -> bool:
        try:
            storage.put_if_absent(self._file(name), data)
        except ConflictError:
            return False
        return True

    def _load(self, name: str, kind: type[Record]) -> Record | None:
        return load(self._file(name), kind)


def load(uri: str, kind: type[Record]) -> Record | None:
    """Read a record; None if it is missing, or was written by another version of cytoray."""
    data = storage.find_bytes(uri)
    try:
        return None if data is None else kind.model_validate_json(data)
    except ValidationError:
        return None


class Submitted(Config):
    """The job that a request with an Idempotency-Key has made."""

    digest: str
    job: str


@dataclass(frozen=True)
class JobFiles:
    """The files of all jobs."""

    root: str

    def job(self, job_id: str) -> JobFolder:
        """Return the folder of a job, which may not exist."""
        return JobFolder(self.root, job_id)

    def submit(self, spec: JobSpec) -> None:
        """Put a job into the queue; it can be done once the last file, its spec, is there."""
        storage.write_bytes(storage.join(self._owner(spec.owner), "jobs", spec.id), b"1")
        storage.write_bytes(storage.join(self.root, "queue", spec.id), b"1")
        with contextlib.suppress(ConflictError):  # the same request, sent twice at the same time
            storage.put_if_absent(storage.join(self.job(spec.id).uri, "spec.json"), spec.model_dump_json().encode())

    def remember(self, owner: str, key: str, submitted: Submitted) -> Submitted:
        """Keep which job a key of an owner stands for; returns the one that was kept first."""
        uri = self._key(owner, key)
        try:
            storage.put_if_absent(uri, submitted.model_dump_json().encode())
        except ConflictError:
            return Submitted.model_validate_json(storage.read_bytes(uri))
        return submitted

    def recall(self, owner: str, key: str) -> Submitted | None:
        """Return the job that a key of an owner stands for."""
        data = storage.find_bytes(self._key(owner, key))
        return None if data is None else Submitted.model_validate_json(data)

    def queue(self) -> list[str]:
        """Return the ids of the jobs that have not ended, oldest first."""
        return sorted(self._names("queue"))

    def of_owner(self, owner: str) -> list[str]:
        """Return the ids of an owner's jobs, newest first."""
        return sorted(_names(storage.join(self._owner(owner), "jobs")), reverse=True)

    def close(self, job_id: str) -> None:
        """Take an ended job out of the queue."""
        storage.write_bytes(storage.join(self.root, "ended", job_id), b"1")
        storage.delete(storage.join(self.root, "queue", job_id))

    def expired(self, *, before: float) -> Iterator[str]:
        """Yield the ids of the jobs that had ended before a time."""
        for entry in storage.list_objects(storage.join(self.root, "ended")):
            if entry.modified_s < before:
                yield entry.uri.rpartition("/")[2]

    def delete(self, job_id: str) -> None:
        """Delete an ended job and its result."""
        spec = self.job(job_id).spec()
        if spec is not None:
            storage.delete(storage.join(self._owner(spec.owner), "jobs", job_id))
            if spec.key is not None:
                storage.delete(self._key(spec.owner, spec.key))
        storage.delete_prefix(self.job(job_id).uri)
        storage.delete(storage.join(self.root, "ended", job_id))

    def _names(self, folder: str) -> list[str]:
        return _names(storage.join(self.root, folder))

    def _owner(self, owner: str) -> str:
        return storage.join(self.root, "owners", owner_key(owner))

    def _key(self, owner: str, key: str) -> str:
        return storage.join(self._owner(owner), "keys", hashlib.sha256(key.encode()).hexdigest())


def _names(uri: str) -> list[str]:
    names = (entry.rpartition("/")[2] for entry in storage.list_files(uri))
    return [name for name in names if ID.fullmatch(name)]
