"""The jobs of a service: submit, report, cancel and delete them, for their owners only."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from cytoray import storage
from cytoray.errors import RequestError, ServingError
from cytoray.model.bundle_files import DIGESTS
from cytoray.serving.hosting.names import EVERY
from cytoray.serving.jobs.config import JobsConfig
from cytoray.serving.jobs.files import ID, Beat, JobEnd, JobFiles, JobFolder, JobSpec, Submitted, created_at, new_id
from cytoray.serving.jobs.inputs import check_corpus, check_uri
from cytoray.serving.jobs.keeper import Keeper, ProcessWorker, Start, bundle_uri
from cytoray.serving.jobs.messages import JobRequest, JobState, State
from cytoray.serving.jobs.uploads import HOUR_S, PART_BYTES, Uploads
from cytoray.tasks import task_offline
from cytoray.tasks.endpoint import Endpoint, ServedModel
from cytoray.tasks.messages import CellsRequest

logger = logging.getLogger(__name__)
EVENTS_S, EVENT_EVERY_S = 25.0, 1.0  # length of a stream of events: clients connect again
ENDED = ("succeeded", "failed", "cancelled")


class Slot(Protocol):
    """A model of the service, in the version of the moment."""

    @property
    def served(self) -> ServedModel:
        """The model, with its identity."""


#: A model by its name, among those that a key is for; raises RequestError for an unknown one.
Find = Callable[[str | None, Sequence[str]], Slot]


@dataclass(frozen=True)
class JobsPlace:
    """Settings and places that jobs need beside the models of a service."""

    config: JobsConfig
    store: str | None  # root of corpora
    cache_folder: str  # for models
    max_part_bytes: int = PART_BYTES


class Jobs:
    """The jobs of a service, and the keeper that does them."""

    def __init__(self, place: JobsPlace, find_model: Find, *, start: Start = ProcessWorker) -> None:
        self.config = config = place.config
        self.files = JobFiles(config.root)
        self.uploads = Uploads(config.root, config, min(PART_BYTES, place.max_part_bytes))
        self.keeper = Keeper(self.files, config, cache_folder=place.cache_folder, start=start)
        self.keeper.on_sweep(self.sweep)
        self._find_model, self._store = find_model, place.store
        self._keeping: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Look after the queue from now on; called in the event loop of the service."""
        if self._keeping is None:
            _prepare_root(self.config.root)
            self._keeping = asyncio.create_task(self.keeper.run(), name="jobs")

    def resume(self) -> None:
        """Look after jobs of a former service, if there may be some; called when this one starts."""
        if storage.is_remote(self.config.root) or Path(self.config.root).exists():
            self.begin()

    async def close(self) -> None:
        """Stop; jobs that run are continued by another replica, or when the service starts again."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        await asyncio.to_thread(self.keeper.close)

    def submit(
        self, owner: str, asked: JobRequest, *, key: str | None, models: Sequence[str] = EVERY
    ) -> tuple[JobState, bool]:
        """Put a job into the queue; returns it, and whether it is new.

        With ``key`` the same request gives the same job; ``models`` are those that the owner may ask. Raises
        RequestError if it is not valid or may not be done now.
        """
        digest = hashlib.sha256(json.dumps(asked.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
        known = None if key is None else self.files.recall(owner, key)
        if known is not None and (found := self._repeated(known, digest)) is not None:
            return found, False
        served = self._find_model(asked.model, models).served  # once: the version may change at any time
        spec = self._spec(owner, asked, key, served)
        self._check_room(owner)
        self._keep_model(served)
        if key is not None:
            kept = self.files.remember(owner, key, Submitted(digest=digest, job=spec.id))
            if kept.job != spec.id:
                if (found := self._repeated(kept, digest)) is not None:
                    return found, False
                spec = spec.model_copy(update={"id": kept.job})  # whoever sent it before has not come that far
        self.files.submit(spec)
        self.keeper.figures.counts["submitted"] += 1
        return self._state(self.files.job(spec.id), spec), True

    def find(self, owner: str, job_id: str) -> tuple[JobFolder, JobSpec]:
        """Find a job of an owner; raises RequestError if it does not exist."""
        folder = self.files.job(job_id)
        spec = folder.spec() if ID.fullmatch(job_id) else None
        if spec is None or spec.owner != owner:
            raise RequestError("There is no such job.", remedy="GET /v1/jobs lists yours.", code="not_found")
        return folder, spec

    def report(self, owner: str, job_id: str) -> tuple[JobState, int]:
        """Return a job of an owner, and the number of cells to be charged for it now, which is done once."""
        folder, spec = self.find(owner, job_id)
        state = self._state(folder, spec)
        cells = state.total or 0
        return state, cells if cells and folder.charge() else 0

    def jobs_of(self, owner: str) -> list[JobState]:
        """Return the jobs of an owner, newest first."""
        found = []
        for job_id in self.files.of_owner(owner):
            folder = self.files.job(job_id)
            if (spec := folder.spec()) is not None:
                found.append(self._state(folder, spec))
        return found

    def remove(self, owner: str, job_id: str) -> JobState | None:
        """Cancel a job, and return it; or delete it with its result if it has ended."""
        folder, spec = self.find(owner, job_id)
        if folder.end() is None:
            folder.cancel()
            return self._state(folder, spec)
        if job_id in self.files.queue():  # nobody has noticed its end yet
            self.files.close(job_id)
        self.files.delete(job_id)
        return None

    def result(self, owner: str, job_id: str) -> tuple[str, JobState]:
        """Return the file of a job's result, and the job; raises RequestError unless it has succeeded."""
        folder, spec = self.find(owner, job_id)
        state = self._state(folder, spec)
        if state.result is None:
            raise RequestError(
                f"The job is {state.state}: it has no result.", remedy="Look at `state` and `problem` of the job.",
                code="job_not_done", state=state.state,
            )  # fmt: skip
        return folder.result(state.result.name), state

    async def events(self, owner: str, job_id: str, *, seconds: float = EVENTS_S) -> AsyncIterator[JobState]:
        """Yield a job whenever it has changed, until it has ended or the time is over."""
        folder, spec = await asyncio.to_thread(self.find, owner, job_id)
        last = await asyncio.to_thread(self._state, folder, spec)
        yield last
        until = time.monotonic() + seconds
        while last.state not in ENDED and time.monotonic() < until:
            await asyncio.sleep(EVENT_EVERY_S)
            state = await asyncio.to_thread(self._state, folder, spec)
            if state != last:
                last = state
                yield state

    def sweep(self) -> None:
        """Delete jobs, uploads and models that nobody needs any more."""
        before = time.time() - self.config.keep_h * HOUR_S
        for job_id in list(self.files.expired(before=before)):
            self.files.delete(job_id)
        specs: list[JobSpec] = []
        for job_id in self.files.queue():
            if (spec := self.files.job(job_id).spec()) is not None:
                specs.append(spec)
            elif created_at(job_id) < time.time() - HOUR_S:  # whoever submitted it died half-way
                self.files.close(job_id)
        self.uploads.sweep(keep={spec.input.upload for spec in specs if spec.input.upload is not None})
        used = {spec.model.digest for spec in specs}
        for entry in storage.list_objects(storage.join(self.config.root, "bundles")):
            folder, _, name = entry.uri.rpartition("/")
            if name == DIGESTS and entry.modified_s < before and folder.rpartition("/")[2] not in used:
                storage.delete_prefix(folder)

    def _repeated(self, known: Submitted, digest: str) -> JobState | None:
        """Return the job that a repeated request stands for; None if it was never put into the queue."""
        if known.digest != digest:
            raise RequestError(
                "This Idempotency-Key was sent with another body.", remedy="Use a new key for another job.",
                code="idempotency_conflict",
            )  # fmt: skip
        folder = self.files.job(known.job)
        spec = folder.spec()
        return None if spec is None else self._state(folder, spec)

    def _spec(self, owner: str, asked: JobRequest, key: str | None, served: ServedModel) -> JobSpec:
        """Check a request, and fix all that may change until the job is done."""
        endpoint = find_task(asked.task)
        endpoint.check(served)
        _check_parameters(endpoint, asked.parameters)
        name = sha256 = None
        if asked.input.upload is not None:
            record = self.uploads.find(owner, asked.input.upload)
            if not self.uploads.state(record).complete:
                raise RequestError(
                    "The upload is not complete.", remedy="Send the parts that are missing.", code="upload_incomplete"
                )
            uri, name = self.uploads.uri(record), record.asked.name
            sha256 = record.asked.sha256 if storage.is_remote(uri) else None  # a local one was verified on arrival
        elif asked.input.corpus is not None:
            uri = self._corpus(asked.input.corpus)
        else:
            assert asked.input.uri is not None, "one of the three is given"
            uri = check_uri(asked.input.uri, allowed=self.config.allowed_inputs)
        return JobSpec(
            id=new_id("j"), owner=owner, created=time.time(), task=asked.task, input=asked.input, format=asked.format,
            parameters=asked.parameters, model=served.info, uri=uri, name=name, sha256=sha256, key=key,
        )  # fmt: skip

    def _corpus(self, name: str) -> str:
        """Return the URI of a corpus that jobs may read."""
        checked = check_corpus(name, allowed=self.config.allowed_inputs)
        if self._store is None or not storage.list_files(
            storage.join(self._store, "corpora", checked.partition("@")[0], "versions")
        ):
            raise RequestError("There is no such corpus.", remedy="Check its name.", code="not_found", pointer="/input")
        return storage.join(self._store, "corpora", checked)

    def _check_room(self, owner: str) -> None:
        """Raise RequestError if the owner, or all together, have too many unfinished jobs."""
        queue = self.files.queue()
        if len(queue) >= self.config.max_queued:
            raise RequestError(
                f"{len(queue)} jobs wait or run, as many as this service takes.", remedy="Try again later.",
                code="overloaded", retry_after_s=60,
            )  # fmt: skip
        own = set(queue) & set(self.files.of_owner(owner))
        if len(own) >= self.config.max_per_owner:
            raise RequestError(
                f"You have {len(own)} unfinished jobs, as many as an owner may have.",
                remedy="Wait for one of them, or cancel it.", code="too_many_jobs", retry_after_s=60,
            )  # fmt: skip

    def _keep_model(self, served: ServedModel) -> None:
        """Keep a copy of the model, so that the job does not depend on how long this version is served."""
        model = served.info
        uri = bundle_uri(self.config.root, model.digest)
        listing = storage.join(uri, DIGESTS)
        if storage.exists(listing):
            if time.time() - storage.info(listing).modified_s > self.config.keep_h * HOUR_S / 2:
                storage.write_bytes(listing, storage.read_bytes(listing))  # `sweep` goes by its age
            return
        from cytoray.model.bundle import save_bundle  # imports torch

        with tempfile.TemporaryDirectory(prefix="cytoray-model-") as scratch:
            folder = Path(scratch) / "bundle"
            digest = save_bundle(replace(served.bundle), folder)
            if digest != model.digest:
                raise ServingError(f"The model {model.name} cannot be kept for a job: its copy differs.")
            storage.upload_folder(folder, uri, last=DIGESTS)

    def _state(self, folder: JobFolder, spec: JobSpec) -> JobState:
        end, beat = folder.end(), folder.beat()
        is_cancelled = end is None and folder.is_cancelled()
        return describe(spec, beat, end, state=_state_of(beat, end, is_cancelled), keep_s=self.config.keep_h * HOUR_S)


def describe(spec: JobSpec, beat: Beat | None, end: JobEnd | None, *, state: State, keep_s: float) -> JobState:
    """Return what the owner of a job sees of it."""
    done, total, rate = (0, None, None) if beat is None else (beat.done, beat.total, beat.rate)
    is_going = state == "running" and rate and total is not None
    return JobState(
        id=spec.id,
        task=spec.task,
        input=spec.input,
        format=spec.format,
        parameters=spec.parameters,
        model=spec.model,
        state=state,
        done=done,
        total=total,
        rate=None if rate is None else round(rate, 3),
        eta_s=round((total - done) / rate, 1) if is_going and rate and total is not None else None,
        created=_time(spec.created),
        started=None if beat is None else _time(beat.started),
        ended=None if end is None else _time(end.ended),
        expires=None if end is None else _time(end.ended + keep_s),
        attempts=0 if beat is None else beat.attempt,
        num_empty=None if end is None else end.num_empty,
        warnings=() if end is None else end.warnings,
        problem=None if end is None else end.problem,
        result=None if end is None else end.result,
    )


def _state_of(beat: Beat | None, end: JobEnd | None, is_cancelled: bool) -> State:
    if end is not None:
        return end.state
    if is_cancelled:
        return "cancelling"
    return "queued" if beat is None else "running"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _endpoints() -> list[Endpoint[Any, Any]]:
    return [task.endpoint.load() for task in task_offline().values() if task.endpoint is not None]


def names_of_tasks() -> list[str]:
    """Return the names of the tasks that jobs can do."""
    return [endpoint.name for endpoint in _endpoints()]


def find_task(name: str) -> Endpoint[Any, Any]:
    """Return the endpoint of a task that jobs can do; RequestError that lists them."""
    for endpoint in _endpoints():
        if endpoint.name == name:
            return endpoint
    raise RequestError(
        f"{name!r} is not a task of jobs.",
        remedy=f"Tasks are {', '.join(names_of_tasks())}.",
        code="unknown_task",
        pointer="/task",
    )


def _check_parameters(endpoint: Endpoint[Any, Any], parameters: dict[str, Any]) -> None:
    """Raise RequestError unless these are members of a request of the task, other than cells and genes."""
    fields = endpoint.request.model_fields.keys() - CellsRequest.model_fields.keys()
    for name in parameters:
        if name not in fields:
            remedy = f"Parameters of {endpoint.name} are {', '.join(sorted(fields))}." if fields else "It takes none."
            raise RequestError(f"Unknown parameter {name!r}.", remedy=remedy, pointer=f"/parameters/{name}")
    try:
        endpoint.request.__pydantic_validator__.validate_json(
            json.dumps({"genes": ["A"], "cells": [{"i": [0], "v": [1]}], **parameters})
        )
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = "/".join(map(str, first["loc"]))
        raise RequestError(f"/parameters/{where}: {first['msg']}.", pointer=f"/parameters/{where}") from error


def _prepare_root(root: str) -> None:
    """Create a local folder for this user only: uploads and results are not for others of the machine."""
    if storage.is_remote(root):
        return
    Path(root).mkdir(parents=True, exist_ok=True, mode=0o700)
    if Path(root).stat().st_uid != os.getuid():
        raise ServingError(f"{root}, the folder of jobs, belongs to another user.", remedy="Set jobs.folder.")
