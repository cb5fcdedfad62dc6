"""The routes of jobs and uploads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from cytoray import storage
from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.hosting.routes import allowed_models
from cytoray.serving.jobs.hub import Jobs
from cytoray.serving.jobs.messages import JobList, JobRequest, JobState, UploadRequest, UploadState
from cytoray.serving.jobs.uploads import read_announcement
from cytoray.serving.payloads.json_cells import read_message
from cytoray.serving.problems import reply_headers
from cytoray.tasks.messages import Message

MESSAGE_LIMITS = Limits()
MOST_BODY = 65_536  # bytes of a message
MOST_KEY = 128  # characters of an Idempotency-Key
RESULT_URL_S = 3600
EVENT_STREAM = "text/event-stream"
Hub = Callable[[], Jobs]
_PROBLEM = {
    "description": "A problem, see `code`.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def add_jobs(api: FastAPI, jobs: Jobs | None) -> None:
    """Add the routes; without ``jobs`` they answer that the service takes none."""

    def hub() -> Jobs:
        """Return the jobs, which are looked after from the first request on."""
        if jobs is None:
            raise RequestError(
                "This service takes no jobs.", remedy="Ask the operator to set jobs.enabled.", code="jobs_off"
            )
        jobs.begin()
        return jobs

    _add_uploads(api, hub)
    _add_jobs(api, hub)
    _add_results(api, hub)


def _add_uploads(api: FastAPI, hub: Hub) -> None:
    @api.post("/v1/uploads", **_documented(201, UploadState, body=UploadRequest))
    async def open_upload(request: Request, name: str = "cells.h5ad") -> Response:
        """Announce a file (JSON), whose parts follow; or send it as the body, with any other type of content."""
        uploads, owner = hub().uploads, _owner(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
            asked = read_message(await _read(request), kind=UploadRequest, limits=MESSAGE_LIMITS)
            record = await asyncio.to_thread(uploads.open, owner, asked)
        else:
            content = await request.body()
            if not content:
                raise RequestError("The file is empty.", remedy="Send its bytes.", pointer="")
            record = await asyncio.to_thread(uploads.open, owner, read_announcement(name, len(content)))
            await asyncio.to_thread(uploads.put, record, content)
        state = await asyncio.to_thread(uploads.state, record)
        return _reply(request, state, status=201, headers={"Location": f"/v1/uploads/{state.id}"})

    @api.put("/v1/uploads/{upload_id}", **_documented(200, UploadState))
    async def put_part(request: Request, upload_id: str, offset: int) -> Response:
        """Append a part of a file, which begins at ``offset``."""
        uploads = hub().uploads
        record = await asyncio.to_thread(uploads.find, _owner(request), upload_id)
        await uploads.append(record, request.stream(), offset=offset)
        return _reply(request, await asyncio.to_thread(uploads.state, record))

    @api.get("/v1/uploads/{upload_id}", **_documented(200, UploadState))
    async def get_upload(request: Request, upload_id: str) -> Response:
        """Return how much of a file has arrived."""
        uploads = hub().uploads
        record = await asyncio.to_thread(uploads.find, _owner(request), upload_id)
        return _reply(request, await asyncio.to_thread(uploads.state, record))

    @api.delete("/v1/uploads/{upload_id}", **_documented(204))
    async def delete_upload(request: Request, upload_id: str) -> Response:
        """Delete an upload."""
        uploads = hub().uploads
        record = await asyncio.to_thread(uploads.find, _owner(request), upload_id)
        await asyncio.to_thread(uploads.delete, record)
        return Response(status_code=204, headers=reply_headers(request))


def _add_jobs(api: FastAPI, hub: Hub) -> None:
    @api.post("/v1/jobs", **_documented(202, JobState, body=JobRequest))
    async def submit(request: Request) -> Response:
        """Submit a job; with the header `Idempotency-Key` the same body gives the same job."""
        jobs = hub()
        asked = read_message(await _read(request), kind=JobRequest, limits=MESSAGE_LIMITS)
        submit = partial(jobs.submit, _owner(request), asked, key=_key(request), models=allowed_models(request))
        state, is_new = await asyncio.to_thread(submit)
        headers = {"Location": f"/v1/jobs/{state.id}"}
        return _reply(request, state, status=202 if is_new else 200, headers=headers)

    @api.get("/v1/jobs", **_documented(200, JobList))
    async def list_jobs(request: Request) -> Response:
        """List the jobs of the owner of the key, newest first."""
        found = await asyncio.to_thread(hub().jobs_of, _owner(request))
        return _reply(request, JobList(jobs=found))

    @api.get("/v1/jobs/{job_id}", **_documented(200, JobState))
    async def get_job(request: Request, job_id: str) -> Response:
        """Return a job, and how far it is."""
        state, cells = await asyncio.to_thread(hub().report, _owner(request), job_id)
        return _reply(request, state, headers={"X-Cells": str(cells)})

    @api.delete("/v1/jobs/{job_id}", **_documented(202, JobState))
    async def remove_job(request: Request, job_id: str) -> Response:
        """Cancel a job; or, if it has ended, delete it with its result (204)."""
        state = await asyncio.to_thread(hub().remove, _owner(request), job_id)
        if state is None:
            return Response(status_code=204, headers=reply_headers(request))
        return _reply(request, state, status=202)


def _add_results(api: FastAPI, hub: Hub) -> None:
    @api.get("/v1/jobs/{job_id}/events", **_documented(200, media_type=EVENT_STREAM))
    async def events(request: Request, job_id: str) -> Response:
        """Stream a job as server-sent events, one per change, until it has ended or for a while."""
        jobs, owner = hub(), _owner(request)
        _, cells = await asyncio.to_thread(jobs.report, owner, job_id)

        async def stream() -> AsyncIterator[bytes]:
            """Encode the events."""
            yield b"retry: 1000\n\n"
            async for state in jobs.events(owner, job_id):
                yield f"event: {state.state}\ndata: {state.model_dump_json()}\n\n".encode()

        headers = reply_headers(request) | {"X-Cells": str(cells)}
        return StreamingResponse(stream(), headers=headers, media_type=EVENT_STREAM)

    @api.get("/v1/jobs/{job_id}/result", **_documented(200, media_type="application/octet-stream"))
    async def result(request: Request, job_id: str) -> Response:
        """Return the file of the result, or redirect to it (307) if it is on S3."""
        jobs, owner = hub(), _owner(request)
        uri, state = await asyncio.to_thread(jobs.result, owner, job_id)
        assert state.result is not None, "a file has a description"
        _, cells = await asyncio.to_thread(jobs.report, owner, job_id)
        headers = reply_headers(request) | {"X-Cells": str(cells), "ETag": f'"{state.result.sha256}"'}
        if storage.is_remote(uri):
            name = state.result.name
            url = await asyncio.to_thread(storage.presign, uri, expires_s=RESULT_URL_S, save_as=name)
            return RedirectResponse(url, 307, headers=headers)
        return FileResponse(
            storage.local_path(uri), media_type=state.result.media_type, filename=state.result.name, headers=headers
        )


def _owner(request: Request) -> str:
    """Return the owner of the key, as the edge found out; without keys all requests have the same."""
    return str(request.scope.get("state", {}).get("key_owner") or "")


def _key(request: Request) -> str | None:
    """Return the Idempotency-Key; raises RequestError if it is not one."""
    key = request.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= MOST_KEY and key.isascii() and key.isprintable()):
        raise RequestError(
            "The header Idempotency-Key is not valid.", remedy=f"Send 1 to {MOST_KEY} printable ASCII characters."
        )
    return key


async def _read(request: Request) -> bytes:
    """Read a message."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            raise RequestError(f"The message has more than {MOST_BODY} bytes.", code="too_large", pointer="")
    return body


def _reply(request: Request, content: Message, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        content.model_dump_json(), status, headers=reply_headers(request) | (headers or {}),
        media_type="application/json",
    )  # fmt: skip


def _documented(
    status: int,
    answer: type[Message] | None = None,
    *,
    body: type[Message] | None = None,
    media_type: str = "application/json",
) -> dict[str, Any]:
    """Return the OpenAPI entries of a route that reads and writes by itself."""
    found: dict[str, Any] = {"description": "The answer."}
    if answer is not None:
        found["content"] = {media_type: {"schema": {"$ref": f"#/components/schemas/{answer.__name__}"}}}
    elif status != 204:
        found["content"] = {media_type: {"schema": {"type": "string"}}}
    about: dict[str, Any] = {
        "response_class": Response,
        "status_code": status,
        "responses": {status: found, "4XX": _PROBLEM, "5XX": _PROBLEM},
    }
    if body is not None:
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        about["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return about


SCHEMAS = (JobRequest, JobState, JobList, UploadRequest, UploadState)
