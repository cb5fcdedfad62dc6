"""Submit a job once: the same name and settings lead to the job that is there, others are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cytoray.errors import ConflictError, JobError
from cytoray.operations.jobs.records import Cluster, JobRecord, attempts_of, find_job_record
from cytoray.operations.jobs.request import JobRequest, build_again, describe_differences


@dataclass(frozen=True)
class Submitted:
    """The attempt that a submission led to, and whether it was started by it."""

    record: JobRecord
    is_new: bool


def submit(cluster: Cluster, request: JobRequest, *, repeats: bool = False) -> Submitted:
    """Start a job, or return the one of this name that runs or is done.

    A job that failed or was stopped gets another attempt; its stage continues where the last one ended. With
    ``repeats`` so does a job that is done, and one that has ended may have had other settings. Raises JobError that
    lists the keys if the job of this name has other settings.
    """
    earlier = attempts_of(cluster, request.name)
    if earlier and not (repeats and earlier[-1].has_ended):
        _refuse_other_settings(earlier[-1], request)
        if earlier[-1].status in ("pending", "running", "succeeded"):
            return Submitted(earlier[-1], is_new=False)
    return _start(cluster, request, attempt=earlier[-1].attempt + 1 if earlier else 1)


def retry(cluster: Cluster, name: str, *, overrides: Sequence[str] = ()) -> Submitted:
    """Start another attempt of a job that has failed or was stopped, with its own settings and ``overrides``.

    Raises JobError if it runs or has succeeded.
    """
    last = find_job_record(cluster, name)
    last = attempts_of(cluster, last.name)[-1]
    if not last.has_ended:
        raise JobError(
            f"Job {last.name} is {last.status}.", remedy=f"`cytoray jobs attach {last.name}`, or stop it first."
        )
    if last.status == "succeeded":
        raise JobError(f"Job {last.name} has succeeded.", remedy="Submit under another --name to run its stage again.")
    request = build_again(last.config, name=last.name, overrides=overrides, environment=last.environment)
    return _start(cluster, replace(request, program=last.program), attempt=last.attempt + 1)


def _start(cluster: Cluster, request: JobRequest, *, attempt: int) -> Submitted:
    """Submit an attempt; if another process is faster, return its one."""
    is_new = True
    try:
        cluster.submit(request, attempt=attempt)
    except ConflictError:
        is_new = False
    found = [record for record in attempts_of(cluster, request.name) if record.attempt == attempt]
    if not found:
        raise JobError(
            f"Job {request.name} was submitted to {cluster.option}, which does not list it.",
            remedy="Look at `cytoray jobs ls`; a job of another program may have this name.",
        )
    if not is_new:
        _refuse_other_settings(found[0], request)
    return Submitted(found[0], is_new=is_new)


def _refuse_other_settings(record: JobRecord, request: JobRequest) -> None:
    """Raise JobError if the job of this name has other settings."""
    differing = describe_differences(record.settings, request.settings)
    if differing:
        raise JobError(
            f"There is a job {request.name} with other settings: {', '.join(differing)}.",
            remedy="Give this one another --name, or leave --name out: the default differs with the settings. "
            f"`cytoray jobs retry {request.name} --set KEY=VALUE` continues a failed one with changes.",
            keys=[text.partition(" (")[0] for text in differing],
        )
