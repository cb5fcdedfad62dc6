"""The queue of jobs: starts a process for each, notices how they end, and starts them again if they were killed.

Each replica has a keeper; what they agree on are the files of the store, so any of them continues where another ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
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
from cytoray.serving.jobs.alive import is_alive, this_host, this_process
from cytoray.serving.jobs.config import JobsConfig, RunnerSettings
from cytoray.serving.jobs.files import Attempt, Beat, JobEnd, JobFiles, JobFolder
from cytoray.serving.jobs.messages import JobProblem, State
from cytoray.serving.problems import CASES

logger = logging.getLogger(__name__)
MODULE = "cytoray.serving.jobs.runner"
POLL_S, POLL_REMOTE_S = 1.0, 5.0  # of a local store, and of S3, where looking costs money
LOST_S, START_S = 30.0, 300.0  # without a sign of life, or the first one, a process elsewhere counts as lost
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
            except (StorageError, OSError) as error:  # store, memory or disk may be back at the next look
                logger.error("the queue of jobs could not be looked after: %s", error)
            await asyncio.sleep(POLL_REMOTE_S if storage.is_remote(self._files.root) else POLL_S)

    def close(self) -> None:
        """End the processes started here; another keeper continues their jobs."""
        with self._lock:
            self._is_closed = True
            while self._workers:
                job_id, worker = self._workers.popitem()
                worker.kill()
                self._files.job(job_id).excuse()

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
        attempts, beat = folder.attempts(), folder.beat()
        if not attempts:
            return False
        has_begun = beat is not None and beat.attempt == len(attempts)
        last = beat if beat is not None and has_begun else attempts[-1]
        if last.host == this_host():
            if has_begun or last.process == this_process():
                return has_begun and is_alive(last.process)
            if is_alive(last.process):  # it has started a process, which needs time to begin
                return True
        seen = self._seen.get(folder.id)
        if seen is None or (seen.beat, seen.attempts) != (beat, len(attempts)):
            self._seen[folder.id] = seen = _Seen(beat, len(attempts), time.monotonic())
        is_near = has_begun or last.host == this_host()
        return time.monotonic() - seen.since < (LOST_S if is_near else START_S)

    def _begin(self, folder: JobFolder) -> int:
        """Start a process for a job; returns the number of processes started."""
        beat, attempts = folder.beat(), folder.attempts()
        done = 0 if beat is None else beat.done
        recent = attempts[-MAX_FRUITLESS:]
        if len(recent) == MAX_FRUITLESS and all(one.done == done and not one.is_excused for one in recent):
            problem = JobProblem(
                code="job_lost",
                title=CASES["job_lost"].title,
                detail=f"The process that worked on it has ended {len(attempts)} times, lately without any new answer. "
                "The log of the service may have the cause.",
            )
            folder.finish(JobEnd(state="failed", ended=time.time(), problem=problem))
            return 0
        number, spec = len(attempts) + 1, folder.spec()
        attempt = Attempt(done=done, host=this_host(), process=this_process(), nonce=secrets.token_hex(8))
        if spec is None or not folder.claim(number, attempt):
            return 0
        bundle = bundle_uri(self._files.root, spec.model.digest)
        logger.info("job %s: attempt %d", folder.id, number)
        settings = RunnerSettings(
            job=folder.id, attempt=number, config=self._config, bundle=bundle, cache_folder=self._cache_folder
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
