"""The process that does one job: ``python -m cytoray.serving.jobs.runner SETTINGS``, started by `keeper`.

It is not the model's replica, which may die while the job continues, and whose requests come first. Answers are those
of `serving.offline`, part by part, so that another process continues where this one was killed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cytoray import cluster, storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.places import CellPlace, open_places
from cytoray.errors import CytorayError, NotFoundError, RequestError, StorageError
from cytoray.failpoints import failpoint
from cytoray.serving.confined.places import open_confined
from cytoray.serving.confined.reader import ReaderLimits, readers
from cytoray.serving.jobs.alive import this_host, this_process
from cytoray.serving.jobs.config import RunnerSettings
from cytoray.serving.jobs.files import Beat, JobEnd, JobFiles, JobFolder, JobSpec
from cytoray.serving.jobs.inputs import check_uri
from cytoray.serving.jobs.messages import MEDIA_TYPES, JobProblem, JobResult
from cytoray.serving.jobs.output import write_result
from cytoray.serving.offline import OfflineResult, OfflineTask, Part, answer_sources, plan_parts
from cytoray.serving.problems import CASES
from cytoray.tasks import find_endpoint

logger = logging.getLogger(__name__)
BEAT_S = 1.0
NICENESS = 10  # requests go first
GONE = 75  # exit status after a trouble that may pass: EX_TEMPFAIL
_PIECE = 16 * 2**20


class Pulse:
    """Writes signs of life of an attempt, and ends the process if the job is cancelled or has another process."""

    def __init__(self, folder: JobFolder, attempt: int) -> None:
        self._folder = folder
        before = folder.beat()
        started, done, total = time.time(), 0, None
        if before is not None:
            started, done, total = before.started, before.done, before.total
        self._beat = Beat(
            attempt=attempt, host=this_host(), process=this_process(), started=started, done=done, total=total
        )
        self._fresh = 0  # cells that this attempt has answered, since ``_began``
        self._began: float | None = None
        self._stop = threading.Event()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Write them while the block runs."""
        self._write()
        thread = threading.Thread(target=self._run, name="cytoray-pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self._write()

    def expect(self, total: int) -> None:
        """Note how many cells there are."""
        self._change(total=total)
        self._began = time.monotonic()

    def advance(self, amount: float, note: str = "", *, already: bool = False) -> None:
        """Count answered cells; those that were ``already`` answered are all that had been."""
        self._fresh += 0 if already else int(amount)
        seconds = time.monotonic() - (self._began or 0.0)
        rate = self._fresh / seconds if self._fresh and seconds > 0 else None
        self._change(done=int(amount) + (0 if already else self._beat.done), rate=rate)

    def _change(self, **changes: object) -> None:
        self._beat = self._beat.model_copy(update=changes)

    def _write(self) -> None:
        self._change(number=self._beat.number + 1)
        self._folder.write_beat(self._beat)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                if self._folder.is_cancelled():
                    self._folder.finish(JobEnd(state="cancelled", ended=time.time()))
                    end_process_group()
                if self._folder.num_attempts() > self._beat.attempt:
                    logger.warning("another process has taken over job %s", self._folder.id)
                    end_process_group()
                self._write()
            except StorageError as error:  # the store may be back at the next beat
                logger.warning("no sign of life written: %s", error)


def end_process_group() -> None:
    """End this process and those that it started, at once: its answers are whole files."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def run_job(settings: RunnerSettings) -> None:
    """Do a job and record its end; raises StorageError if the store fails, which another attempt may survive."""
    folder = JobFiles(settings.config.root).job(settings.job)
    spec = folder.spec()
    assert spec is not None, "a job in the queue has a spec"
    pulse = Pulse(folder, settings.attempt)
    with pulse.beating(), readers():
        try:
            end = _work(folder, spec, settings, pulse)
        except CytorayError as error:
            if isinstance(error, StorageError) and not isinstance(error, NotFoundError):
                raise
            end = JobEnd(state="failed", ended=time.time(), problem=_problem(error, spec))
    failpoint("jobs.before_end")
    folder.finish(end)  # the last file that is written: the job may be deleted from now on


def _work(folder: JobFolder, spec: JobSpec, settings: RunnerSettings, pulse: Pulse) -> JobEnd:
    """Answer the cells of a job and write its result."""
    config = settings.config
    if spec.input.uri is not None:
        check_uri(spec.input.uri, allowed=config.allowed_inputs)  # a link may have been changed since
    if spec.sha256 is not None:
        _verify(spec)
    task = OfflineTask(
        sources=(SourceConfig(uri=spec.uri, name=spec.name),),
        bundle=settings.bundle,
        model=spec.model,
        out=folder.answers,
        endpoint=spec.task,
        rows_per_file=config.rows_per_chunk,
        num_actors=config.num_cpus,
        num_gpus=config.num_gpus,
        cache_folder=settings.cache_folder,
        members=spec.parameters,
        find=partial(open_places_of, is_corpus=spec.input.corpus is not None, memory_bytes=config.max_memory_bytes),
    )
    parts = plan_parts(task)
    total = sum(part.stop - part.start for part in parts)
    _check_total(total, most=config.max_cells)
    pulse.expect(total)
    answered = answer_sources(task, parts=parts, advance=pulse.advance)
    pulse.advance(total, already=True)  # also if a former attempt had answered everything
    failpoint("jobs.before_result")
    result = _write_result(folder, spec, task, parts)
    return _succeeded(answered, result)


def open_places_of(sources: Sequence[SourceConfig], *, is_corpus: bool, memory_bytes: int) -> Sequence[CellPlace]:
    """Find the cells of a job: a corpus of the store is trusted, files are opened by another process."""
    return open_places(sources) if is_corpus else open_confined(sources, limits=ReaderLimits(memory_bytes))


def _succeeded(answered: OfflineResult, result: JobResult) -> JobEnd:
    return JobEnd(
        state="succeeded",
        ended=time.time(),
        num_empty=answered.num_empty,
        warnings=answered.warnings,
        result=result,
    )


def _write_result(folder: JobFolder, spec: JobSpec, task: OfflineTask, parts: Sequence[Part]) -> JobResult:
    """Write the file of the result to the store, whole."""
    stem = (spec.name or Path(spec.uri.rstrip("/")).name).partition(".")[0] or "cells"
    name = f"{stem}.{spec.format}"
    with tempfile.TemporaryDirectory(prefix="cytoray-job-") as scratch:
        path = Path(scratch) / name
        tables = [storage.join(task.out, part.file) for part in parts]
        obsm = find_endpoint(spec.task).obsm
        write_result(path, tables, format=spec.format, model=spec.model, obsm=obsm)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        storage.write_file(folder.result(name), path)
        return JobResult(
            href=f"/v1/jobs/{spec.id}/result",
            name=name,
            media_type=MEDIA_TYPES[spec.format],
            num_bytes=path.stat().st_size,
            sha256=digest,
        )


def _check_total(total: int, *, most: int) -> None:
    if total == 0:
        raise RequestError("The input has no cells.", remedy="Name a file with cells.", code="unreadable_input")
    if total > most:
        raise RequestError(
            f"The input has {total:,} cells; a job of this service has {most:,} at most.",
            remedy="Divide it into several jobs.",
            code="too_large",
        )


def _verify(spec: JobSpec) -> None:
    """Raise RequestError if the file of an upload is not the announced one."""
    digest = hashlib.sha256()
    with storage.open_read(spec.uri) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    if digest.hexdigest() != spec.sha256:
        raise RequestError("The uploaded file differs from the announced one.", remedy="Upload it again.",
                           code="wrong_digest")  # fmt: skip


def _problem(error: CytorayError, spec: JobSpec) -> JobProblem:
    """Describe an error to the owner of the job, who knows the file by the name that it had before the upload."""
    code = error.code if isinstance(error, RequestError) and error.code in CASES else "unreadable_input"
    detail = str(error) if spec.name is None else str(error).replace(spec.uri, spec.name)
    return JobProblem(code=code, title=CASES[code].title, detail=detail)


def main() -> int:
    """Do the job that the command line names."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = RunnerSettings.model_validate_json(sys.argv[1])
    os.nice(NICENESS)
    try:
        with cluster.available(num_cpus=settings.config.num_cpus):
            run_job(settings)
    except CytorayError as error:
        logger.error("job %s is left to another attempt: %s", settings.job, error)
        return GONE
    return 0


if __name__ == "__main__":
    sys.exit(main())
