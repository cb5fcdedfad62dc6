"""Follow what a job prints until it has really ended: a connection that breaks or ends early is made again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from cytoray.errors import JobError
from cytoray.operations.jobs.records import Cluster, JobRecord, refresh

PAUSE_S = 1.0  # between two looks at a job
PATIENCE_S = 300.0  # for a cluster that does not answer


@dataclass
class _Printed:
    """Passes on the part of a log that was not passed on yet, whichever connection it comes by."""

    write: Callable[[str], None]
    characters: int = 0
    seen: int = 0  # characters of the present connection, which begins with the log

    def restart(self) -> None:
        """Begin a connection."""
        self.seen = 0

    def add(self, text: str) -> None:
        """Take the next part of the log by the present connection."""
        fresh = text[max(0, self.characters - self.seen) :]
        self.seen += len(text)
        if fresh:
            self.characters += len(fresh)
            self.write(fresh)


def follow(
    cluster: Cluster, record: JobRecord, write: Callable[[str], None], *, patience_s: float = PATIENCE_S
) -> JobRecord:
    """Write what an attempt prints, from its beginning, until it has ended; returns its last record.

    A connection that is lost or ends before the job (ray#51601, kuberay#4285) is made again and continues where it
    was. Raises JobError if the cluster does not answer for ``patience_s`` seconds.
    """
    printed = _Printed(write)
    answered = time.monotonic()
    while True:
        if not record.has_ended:
            printed.restart()
            with contextlib.suppress(OSError):  # whether the cluster still answers is seen below
                cluster.tail_logs(record, printed.add)
        try:
            record = refresh(cluster, record)
            if record.has_ended:
                printed.restart()
                printed.add(cluster.read_logs(record))
                return record
            answered = time.monotonic()
        except OSError as error:
            if time.monotonic() - answered > patience_s:
                raise JobError(
                    f"{cluster.option} has not answered for {patience_s:.0f} s ({error}). The job may still run.",
                    remedy=f"Look again with `cytoray jobs attach {record.name} --cluster {cluster.option}`.",
                ) from error
        time.sleep(PAUSE_S)
