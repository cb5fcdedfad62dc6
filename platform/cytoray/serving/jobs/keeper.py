"""The queue of jobs: starts a process for each, notices how they end, and starts them again if they were killed.

Each replica has a keeper; what they agree on are the files of the store, so any of them continues where another ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cytoray import storage
from cytoray.errors import StorageError
from cytoray.serving.jobs.alive import is_alive, this_host
from cytoray.serving.jobs.config import JobsConfig, RunnerSettings
from cytoray.serving.jobs.files import Beat, JobEnd, JobFiles, JobFolder
from cytoray.serving.jobs.messages import JobProblem, State
from cytoray.serving.problems import CASES

logger = logging.getLogger(__name__)
MODULE = "cytoray.serving.jobs.runner"
POLL_S, POLL_REMOTE_S = 1.0, 5.0  # of a local store, and of S3, where looking costs money
LOST_S = 30.0  # without a sign of life, a process on another machine counts as lost
SWEEP_S = 60.0
MAX_FRUITLESS = 3  # attempts that answered nothing new before a job is given up


class Worker(Protocol):
    """A process that does a job."""

    def is_running(self) -> bool:
        """Whether it still runs."""

    def kill(self) -> None:
        """End it and what it has started, and wait for that."""


Start = Callable[[RunnerSettings], Worker]


class ProcessWorker:
    """A process of its own group, started by this one."""

    def __init__(self, settings: RunnerSettings) -> None:
        command = (sys.executable, "-m", MODULE, settings.model_dump_json())
        environment = runner_environment(os.environ, on_cluster=settings.config.on_cluster)
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)

    def is_running(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the group; its answers are whole files."""
        if self.is_running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def runner_environment(environment: Mapping[str, str], *, on_cluster: bool) -> dict[str, str]:
    """Return the environment for a process that is not one of Ray's, though a replica starts it."""
    kept = ("RAY_AUTH_", "RAY_TMPDIR", "RAY_USAGE_", *(("RAY_ADDRESS",) if on_cluster else ()))
    found = {name: value for name, value in environment.items() if not name.startswith("RAY_") or name.startswith(kept)}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**found, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@dataclass
class JobFigures:
    """Figures for /metrics: ``cytoray_jobs_…``."""

    counts: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("succeeded", "failed", "cancelled", "submitted", "started", "cells"), 0.0
        )
    )
    now: dict[str, float] = field(default_factory=lambda: {"queued": 0.0, "running": 0.0})

    def gauges(self) -> Mapping[str, float]:
        """The figures of this moment."""
        return self.now

    def snapshot(self) -> Mapping[str, float]:
        """All figures."""
        return {**self.counts, **self.now}


@dataclass(frozen=True)
class _Seen:
    """A sign of life, and when it was first seen by the clock of this process."""

    beat: Beat | None
    attempts: int
    since: float


class Keeper:
    """Keeps the jobs of a store going."""

    def __init__(self, files: JobFiles, config: JobsConfig, *, cache_folder: str, start: Start = ProcessWorker) -> None:
        self.figures = JobFigures()
        self._files, self._config, self._start = files, config, start
        self._cache_folder = cache_folder
        self._workers: dict[str, Worker] = {}
        self._seen: dict[str, _Seen] = {}
        self._sweep: Callable[[], None] = lambda: None
        self._swept = float("-inf")
        self._lock, self._is_closed = threading.Lock(), False  # a look may be under way in its thread

    def on_sweep(self, sweep: Callable[[], None]) -> None:
        """Have ``sweep`` called now and then, to delete what is too old."""
        self._sweep = sweep

    async def run(self) -> None:
        """Look after the queue until this is cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except StorageError as error:  # the store may be back at the next look
                logger.error("the queue of jobs could not be looked after: %s", error)
            await asyncio.sleep(POLL_REMOTE_S if storage.is_remote(self._files.root) else POLL_S)

    def close(self) -> None:
        """End the processes started here; another keeper continues their jobs."""
        with self._lock:
            self._is_closed = True
            while self._workers:
                self._workers.popitem()[1].kill()

    def look(self) -> None:
        """Look after the queue once."""
        with self._lock:
            if not self._is_closed:
                self._look()

    def _look(self) -> None:
        queue = self._files.queue()
        for job_id in self._workers.keys() - set(queue):  # deleted as soon as it had ended
            self._workers.pop(job_id).kill()
        states = {job_id: self._look_at(self._files.job(job_id)) for job_id in queue}
        running = sum(state == "running" for state in states.values())
        waiting = [job_id for job_id, state in states.items() if state == "queued"]
        for job_id in waiting[: max(self._config.max_running - running, 0)]:
            running += self._begin(self._files.job(job_id))
        self.figures.now = {"queued": float(len(queue) - running), "running": float(running)}
        if time.monotonic() - self._swept > SWEEP_S:
            self._swept = time.monotonic()
            self._sweep()

    def _look_at(self, folder: JobFolder) -> State:
        """Find the state of a job in the queue; a job that has ended leaves it."""
        end = folder.end()
        worker = self._workers.get(folder.id)
        if end is None and folder.is_cancelled():
            if worker is not None:
                worker.kill()
            end = JobEnd(state="cancelled", ended=time.time())
            end = end if folder.finish(end) else folder.end() or end
        if end is not None:
            if worker is None or not worker.is_running():
                self._close(folder, end)
            return end.state
        if worker is not None:
            if worker.is_running():
                return "running"
            del self._workers[folder.id]
            return "queued"
        return "running" if self._runs_elsewhere(folder) else "queued"

    def _runs_elsewhere(self, folder: JobFolder) -> bool:
        """Whether a process that another keeper, or a former service, started is still at it."""
        attempts = folder.num_attempts()
        if attempts == 0:
            return False
        beat = folder.beat()
        if beat is not None and beat.attempt == attempts and beat.host == this_host():
            return is_alive(beat.process)
        seen = self._seen.get(folder.id)
        if seen is None or (seen.beat, seen.attempts) != (beat, attempts):
            self._seen[folder.id] = seen = _Seen(beat, attempts, time.monotonic())
        return time.monotonic() - seen.since < LOST_S

    def _begin(self, folder: JobFolder) -> int:
        """Start a process for a job; returns the number of processes started."""
        beat, attempts = folder.beat(), folder.attempts()
        done = 0 if beat is None else beat.done
        if len(attempts) >= MAX_FRUITLESS and all(before == done for before in attempts[-MAX_FRUITLESS:]):
            problem = JobProblem(
                code="job_lost",
                title=CASES["job_lost"].title,
                detail=f"The process that worked on it has ended {len(attempts)} times, lately without any new answer. "
                "The log of the service may have the cause.",
            )
            folder.finish(JobEnd(state="failed", ended=time.time(), problem=problem))
            return 0
        attempt = len(attempts) + 1
        spec = folder.spec()
        if spec is None or not folder.claim(attempt, done=done):
            return 0
        bundle = bundle_uri(self._files.root, spec.model.digest)
        logger.info("job %s: attempt %d", folder.id, attempt)
        settings = RunnerSettings(
            job=folder.id, attempt=attempt, config=self._config, bundle=bundle, cache_folder=self._cache_folder
        )
        self._workers[folder.id] = self._start(settings)
        self.figures.counts["started"] += 1
        return 1

    def _close(self, folder: JobFolder, end: JobEnd) -> None:
        """Take an ended job out of the queue; its answers are in the result, or nobody wants them."""
        if (worker := self._workers.pop(folder.id, None)) is not None:
            worker.kill()
        self._seen.pop(folder.id, None)
        folder.delete_work()
        if end.state != "succeeded":
            folder.delete_result()
        if folder.note_end():
            beat = folder.beat()
            self.figures.counts[end.state] += 1
            self.figures.counts["cells"] += 0 if beat is None else beat.done
        self._files.close(folder.id)


def bundle_uri(root: str, digest: str) -> str:
    """Return where the model of a job is kept: the process that answers may start when it is no longer served."""
    return f"{root.rstrip('/')}/bundles/{digest}"
