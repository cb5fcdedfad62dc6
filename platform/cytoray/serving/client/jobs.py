"""Jobs of a service for many cells: upload a file or name one, wait, and download the result."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cytoray.drafts import draft_of
from cytoray.errors import ConfigError, RequestError, ServingError
from cytoray.serving.client.background import Background
from cytoray.serving.client.connection import Connection, Sent
from cytoray.serving.client.failures import Failure
from cytoray.serving.client.pace import Pace
from cytoray.serving.client.questions import is_anndata
from cytoray.serving.client.settings import Progress
from cytoray.serving.payloads.media import JSON

FINAL = ("succeeded", "failed", "cancelled")
_POLL_S, _LONGEST_POLL_S = 0.2, 5.0
_DOWNLOAD_BYTES = 8 * 2**20  # in one request
_OCTETS = "application/octet-stream"


@dataclass(frozen=True)
class JobRequest:
    """A job to submit."""

    cells: Any  # an AnnData; a local file; s3://…; or {"corpus": "NAME@VERSION"}
    task: str = "annotate"
    format: str = "h5ad"
    model: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # further members of the requests of the task
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # the same key gives the same job again


class Jobs:
    """The jobs of a service; every method is a coroutine."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def submit(self, asked: JobRequest) -> dict[str, Any]:
        """Submit a job, after the upload of its file if that is local; returns the job."""
        body = {
            "task": asked.task,
            "input": await self._input(asked.cells),
            "format": asked.format,
            "parameters": asked.parameters,
        }
        if asked.model is not None:
            body["model"] = asked.model
        return await self._json("POST", "/v1/jobs", body, key=asked.key)

    async def find(self, job_id: str) -> dict[str, Any]:
        """Return a job as it is now."""
        return await self._json("GET", f"/v1/jobs/{job_id}")

    async def cancel(self, job_id: str) -> None:
        """Cancel a job, or delete one that has ended."""
        await self._ask(Sent("DELETE", f"/v1/jobs/{job_id}"))

    async def wait(self, job_id: str, *, timeout: float | None, progress: Progress | None) -> dict[str, Any]:
        """Wait until a job has ended; raises ServingError if it failed or ``timeout`` seconds passed."""
        started, pause = time.monotonic(), _POLL_S
        while True:
            job = await self.find(job_id)
            if progress is not None and job["total"] is not None:
                progress(int(job["done"]), int(job["total"]))
            if job["state"] in FINAL:
                return _check_success(job)
            if timeout is not None and time.monotonic() + pause > started + timeout:
                raise ServingError(
                    f"Job {job_id} has not ended within {timeout:g} s; it is {job['state']}.",
                    remedy="Wait longer: it continues without this client.",
                    job=job_id,
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_POLL_S)

    async def download(self, job: dict[str, Any], path: Path) -> Path:
        """Download the result of a job that has succeeded to ``path``, which must not exist."""
        if path.exists():
            raise ConfigError(f"{path} already exists.", remedy="Choose another file, or delete it.")
        digest = hashlib.sha256()
        with draft_of(path) as draft:
            with draft.open("wb") as file:
                async for part in self._parts(job["result"]):
                    digest.update(part)
                    await asyncio.to_thread(file.write, part)
            if digest.hexdigest() != job["result"]["sha256"]:
                raise ServingError(
                    f"The result of job {job['id']} arrived with another SHA-256 than announced.",
                    remedy="Download it again.",
                )
        return path

    async def _parts(self, result: dict[str, Any]) -> AsyncIterator[bytes]:
        """Yield the content of a result, in parts that are asked for one after the other."""
        start, num_bytes = 0, int(result["num_bytes"])
        while start < num_bytes:
            stop = min(start + _DOWNLOAD_BYTES, num_bytes)
            response = await self._ask(Sent("GET", result["href"], headers={"Range": f"bytes={start}-{stop - 1}"}))
            if response.is_redirect:
                response = await self._connection.outside("GET", response.headers["location"], start=start, stop=stop)
            content = response.content if response.status_code == 206 else response.content[start:]
            yield content
            if not content:
                return
            start += len(content)

    async def _input(self, cells: Any) -> dict[str, str]:
        """Return the input of a job; a local file or an AnnData is uploaded."""
        if isinstance(cells, dict):
            return cells
        if is_anndata(cells):
            with tempfile.TemporaryDirectory(prefix="cytoray-job-") as folder:
                path = Path(folder) / "cells.h5ad"
                await asyncio.to_thread(cells.write_h5ad, path, compression="gzip")
                return {"upload": await self._upload(path)}
        if "://" in str(cells):
            return {"uri": str(cells)}
        path = Path(cells)
        if not path.is_file():
            raise ConfigError(f"{path} is not a file.", remedy="Name a file of cells, s3://…, or a corpus.")
        return {"upload": await self._upload(path)}

    async def _upload(self, path: Path) -> str:
        """Upload a file part by part; after a lost connection it continues where the service has it."""
        about = {"name": path.name, "num_bytes": path.stat().st_size, "sha256": await asyncio.to_thread(_digest, path)}
        upload = await self._json("POST", "/v1/uploads", about)
        if upload.get("put_url"):
            await self._connection.outside("PUT", upload["put_url"], file=path)
            return str(upload["id"])
        with path.open("rb") as file:
            while upload["received"] < upload["num_bytes"]:
                file.seek(upload["received"])
                part = await asyncio.to_thread(file.read, upload["part_bytes"])
                upload = await self._put(upload, part)
        return str(upload["id"])

    async def _put(self, upload: dict[str, Any], part: bytes) -> dict[str, Any]:
        """Send the next part of an upload; returns the upload, also if the service has another number of bytes."""
        route = f"/v1/uploads/{upload['id']}"
        try:
            response = await self._ask(
                Sent("PUT", f"{route}?offset={upload['received']}", part, {"Content-Type": _OCTETS})
            )
        except RequestError as error:
            if error.code != "wrong_offset" or error.details.get("received") == upload["received"]:
                raise
            return {**upload, "received": error.details["received"]}
        found: dict[str, Any] = response.json()
        return found

    async def _json(
        self, method: str, route: str, body: dict[str, Any] | None = None, *, key: str = ""
    ) -> dict[str, Any]:
        headers = {"Accept": JSON, **({"Idempotency-Key": key} if key else {})}
        content = b"" if body is None else json.dumps(body).encode()
        response = await self._ask(Sent(method, route, content, {**headers, "Content-Type": JSON}))
        found: dict[str, Any] = response.json()
        return found

    async def _ask(self, sent: Sent) -> httpx.Response:
        try:
            return await self._connection.ask(sent, Pace(1))
        except Failure as failure:
            raise failure.error from failure


class _About:
    """A job as it was when the service was last asked."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about

    @property
    def id(self) -> str:
        """Id of the job."""
        return str(self.about["id"])

    @property
    def state(self) -> str:
        """State of the job: queued, running, cancelling, succeeded, failed or cancelled."""
        return str(self.about["state"])


class AsyncJob(_About):
    """A job of a service, for asynchronous code."""

    def __init__(self, jobs: Jobs, about: dict[str, Any]) -> None:
        super().__init__(about)
        self._jobs = jobs

    async def refresh(self) -> AsyncJob:
        """Ask for the state."""
        self.about = await self._jobs.find(self.id)
        return self

    async def wait(self, timeout: float | None = None, *, progress: Progress | None = None) -> AsyncJob:
        """Wait until the job has succeeded; see ``Job.wait``."""
        self.about = await self._jobs.wait(self.id, timeout=timeout, progress=progress)
        return self

    async def result(self, path: str | Path) -> Path:
        """Wait for the result and download it to ``path``; see ``Job.result``."""
        await self.wait()
        return await self._jobs.download(self.about, Path(path))

    async def cancel(self) -> None:
        """Cancel the job, or delete it with its result if it has ended."""
        await self._jobs.cancel(self.id)


class Job(_About):
    """A job of a service."""

    def __init__(self, background: Background, job: AsyncJob) -> None:
        super().__init__(job.about)
        self._background, self._job = background, job

    def refresh(self) -> Job:
        """Ask for the state."""
        return self._after(self._job.refresh())

    def wait(self, timeout: float | None = None, *, progress: Progress | None = None) -> Job:
        """Wait until the job has succeeded; ``progress`` is called with the cells done and all cells.

        Raises ServingError if it failed (with the ``code`` of its problem), was cancelled, or has not ended within
        ``timeout`` seconds; the job continues without this client.
        """
        return self._after(self._job.wait(timeout, progress=progress))

    def result(self, path: str | Path) -> Path:
        """Wait for the result and download it to ``path``, which appears when it is complete and has its SHA-256.

        Raises ConfigError if ``path`` exists; otherwise as ``wait``.
        """
        found = self._background.run(self._job.result(path))
        self.about = self._job.about
        return found

    def cancel(self) -> None:
        """Cancel the job, or delete it with its result if it has ended."""
        self._background.run(self._job.cancel())

    def _after(self, work: Coroutine[Any, Any, AsyncJob]) -> Job:
        self.about = self._background.run(work).about
        return self


def _check_success(job: dict[str, Any]) -> dict[str, Any]:
    """Return a job that has ended; raises ServingError unless it has succeeded."""
    if job["state"] == "succeeded":
        return job
    problem = job.get("problem") or {}
    detail = problem.get("detail") or f"Job {job['id']} was cancelled."
    raise ServingError(str(detail), remedy="", code=problem.get("code", job["state"]), job=job["id"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
