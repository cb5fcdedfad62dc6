"""Stop a job and wait until it has ended: training commits a checkpoint first."""

from __future__ import annotations

import time
from dataclasses import replace

from cytoray.errors import JobError
from cytoray.operations.jobs.following import PAUSE_S
from cytoray.operations.jobs.records import Cluster, JobRecord

LIMIT_S = 180.0  # more than a stopped job is given on a cluster


def stop_and_wait(cluster: Cluster, record: JobRecord, *, limit_s: float = LIMIT_S) -> JobRecord:
    """Ask an attempt to end and return its last record; JobError if it still runs after ``limit_s`` seconds."""
    if record.has_ended:
        return record
    cluster.stop(record)
    deadline = time.monotonic() + limit_s
    while True:
        found = [each for each in cluster.list_jobs() if each.id == record.id]
        if not found:  # it had not started, and its cluster keeps no record
            return replace(record, status="stopped")
        if found[0].has_ended:
            return found[0]
        if time.monotonic() > deadline:
            raise JobError(
                f"Job {record.id} has not ended {limit_s:.0f} s after it was asked to.",
                remedy=f"Look at `cytoray jobs logs {record.id}`, and stop it again.",
            )
        time.sleep(PAUSE_S)
