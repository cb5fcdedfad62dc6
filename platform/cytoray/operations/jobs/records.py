"""A job as its cluster describes it: one record per attempt, the same for Ray's Jobs API and for Kubernetes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cytoray.errors import CytorayError, GateError, JobError, TrainingStoppedError
from cytoray.operations.jobs.names import split_id
from cytoray.operations.jobs.request import JobRequest

Status = Literal["pending", "running", "succeeded", "failed", "stopped"]
ENDED = frozenset({"succeeded", "failed", "stopped"})
FAILED = 1  # exit code of a job that ended in any other way than by its own exit codes
_OWN_CODES = frozenset({0, FAILED, CytorayError.exit_code, GateError.exit_code, TrainingStoppedError.exit_code})


@dataclass(frozen=True)
class JobRecord:
    """One attempt of a job. Times are seconds since 1970, None if it has not come to that."""

    id: str
    name: str
    attempt: int
    job: str  # file of jobs/
    stage: str
    status: Status
    started_s: float | None = None
    ended_s: float | None = None
    driver_code: int | None = None  # exit code of its process; None if the cluster does not know it
    message: str = ""
    config: str = field(default="", repr=False)  # YAML that it was submitted with
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)  # resolved values by dotted key
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)  # variables that it was submitted with
    program: str = ""  # as in its request

    @property
    def has_ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in ENDED

    @property
    def duration_s(self) -> float | None:
        """Seconds since it started, until it ended; None if it has not started."""
        if self.started_s is None:
            return None
        return max(0.0, (time.time() if self.ended_s is None else self.ended_s) - self.started_s)

    @property
    def exit_code(self) -> int | None:
        """Exit code for a command that waited for it; None while it runs.

        0 succeeded, 2 a mistake, 3 a gate refused the model, 75 stopped and can be continued, 1 anything else, such as
        a killed process.
        """
        if not self.has_ended:
            return None
        if self.status == "succeeded":
            return 0
        if self.status == "stopped":
            return TrainingStoppedError.exit_code
        return self.driver_code if self.driver_code and self.driver_code in _OWN_CODES else FAILED

    def as_dict(self) -> dict[str, Any]:
        """Return what commands print as JSON."""
        keys = ("name", "id", "attempt", "job", "stage", "status", "started_s", "ended_s", "duration_s", "exit_code")
        return {key: getattr(self, key) for key in keys} | {"message": self.message or None}


class Cluster(Protocol):
    """A place for jobs: a Ray cluster by its Jobs API, or a namespace of Kubernetes with KubeRay."""

    @property
    def option(self) -> str:
        """The value of --cluster that leads here."""

    def list_jobs(self) -> list[JobRecord]:
        """Return all attempts of all jobs of cytoray, in no order."""

    def submit(self, request: JobRequest, *, attempt: int) -> None:
        """Start an attempt; ConflictError if its id is in use."""

    def read_logs(self, record: JobRecord) -> str:
        """Return what the attempt has printed so far."""

    def tail_logs(self, record: JobRecord, write: Callable[[str], None]) -> None:
        """Call ``write`` with what the attempt prints, from its beginning, until the connection ends.

        It may end before the attempt does. Raises OSError for a lost connection.
        """

    def stop(self, record: JobRecord) -> None:
        """Ask an attempt to end."""


def attempts_of(cluster: Cluster, name: str) -> list[JobRecord]:
    """Return all attempts of a job, oldest first; empty for an unknown name."""
    return sorted((r for r in cluster.list_jobs() if r.name == name), key=lambda record: record.attempt)


def latest_jobs(cluster: Cluster) -> list[JobRecord]:
    """Return the newest attempt of each job, the job that started last first."""
    newest: dict[str, JobRecord] = {}
    for record in cluster.list_jobs():
        if record.name not in newest or newest[record.name].attempt < record.attempt:
            newest[record.name] = record
    return sorted(newest.values(), key=lambda record: -(record.started_s or time.time()))


def find_job_record(cluster: Cluster, name_or_id: str) -> JobRecord:
    """Return the newest attempt of a job, or the attempt that an id names; JobError that lists the jobs if missing."""
    records = cluster.list_jobs()
    name, number = split_id(name_or_id)
    found = [record for record in records if record.name == name and number in (None, record.attempt)]
    if not found:
        names = sorted({record.name for record in records})
        raise JobError(
            f"Unknown job {name_or_id!r} on {cluster.option}.",
            remedy=f"Jobs there: {', '.join(names) or 'none'}. A restarted head has forgotten its jobs: submit again, "
            "finished work is skipped.",
            name=name_or_id,
        )
    return max(found, key=lambda record: record.attempt)


def refresh(cluster: Cluster, record: JobRecord) -> JobRecord:
    """Return an attempt as it is now; JobError if its cluster has forgotten it."""
    found = [each for each in cluster.list_jobs() if each.id == record.id]
    if not found:
        raise JobError(
            f"{cluster.option} has forgotten job {record.id}: its head was restarted.",
            remedy="Submit it again; what its stage has finished is skipped.",
            name=record.name,
        )
    return found[0]
