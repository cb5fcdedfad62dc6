"""The routes of jobs and uploads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse

from cytoray import storage
from cytoray.errors import RequestError
from cytoray.presigned import presign
from cytoray.serving.config import Limits
from cytoray.serving.documenting import (
    binary_content,
    header_parameter,
    headers,
    json_content,
    problems,
)
from cytoray.serving.hosting.routes import allowed_models
from cytoray.serving.jobs.hub import Jobs
from cytoray.serving.jobs.messages import MEDIA_TYPES, JobList, JobRequest, JobState, UploadRequest, UploadState
from cytoray.serving.jobs.uploads import read_announcement
from cytoray.serving.payloads.json_cells import read_message
from cytoray.serving.payloads.media import H5AD, JSON
from cytoray.serving.problems import reply_headers
from cytoray.serving.queries import check_bytes, check_json, check_query, one_header
from cytoray.tasks.messages import Message

MESSAGE_LIMITS = Limits()
MOST_BODY = 65_536  # bytes of a message
MOST_KEY = 128  # characters of an Idempotency-Key
RESULT_URL_S = 3600
EVENT_STREAM = "text/event-stream"
Hub = Callable[[], Jobs]
_MEANING = {
    200: "The answer.",
    201: "The upload, which was created.",
    202: "The job, which was accepted.",
    204: "It was deleted.",
    206: "A part of the file.",
    307: "The file is at the pre-signed URL in `Location`.",
}
_ANNOUNCED = {"name": "cells.h5ad", "num_bytes": 5_000_000}
_SUBMITTED = {"task": "annotate", "input": {"upload": "u0123456789abcdef"}, "format": "h5ad"}
_BYTES = "application/octet-stream"
FileName = Annotated[str, Query(description="If the body is not JSON: the name of the file.")]
Offset = Annotated[int, Query(ge=0, le=2**62, description="Where the part begins: `received` of the upload.")]
_KEY = header_parameter(
    "Idempotency-Key",
    "With the same key the same body gives the same job again (200).",
    {"type": "string", "pattern": f"^[ -~]{{1,{MOST_KEY}}}$"},
)
_RANGE = header_parameter("Range", "Part of the file: bytes=FIRST-LAST.", {"type": "string"})
_RESULTS = ", ".join([*MEDIA_TYPES.values(), _BYTES])


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
    _add_upload(api, hub)
    _add_jobs(api, hub)
    _add_results(api, hub)


def _add_uploads(api: FastAPI, hub: Hub) -> None:
    @api.post(
        "/v1/uploads",
        **_documented(
            {201: UploadState},
            *("too_large", "unsupported_media_type", "storage_full"),
            body=json_content("UploadRequest", example=_ANNOUNCED) | binary_content((H5AD, _BYTES)),
            sent=("Location",),
        ),
    )
    async def open_upload(request: Request, name: FileName = "cells.h5ad") -> Response:
        """Announce a file (JSON), whose parts follow; or send it as the body, with any other type of content."""
        check_query(request, "name")
        uploads, owner = hub().uploads, _owner(request)
        if one_header(request, "Content-Type").partition(";")[0].strip().lower() == JSON:
            check_json(request)
            asked = read_message(await _read(request), kind=UploadRequest, limits=MESSAGE_LIMITS)
            record = await asyncio.to_thread(uploads.open, owner, asked)
        else:
            check_bytes(request)
            content = await request.body()
            if not content:
                raise RequestError("The file is empty.", remedy="Send its bytes.", pointer="")
            record = await asyncio.to_thread(uploads.open, owner, read_announcement(name, len(content)))
            await asyncio.to_thread(uploads.put, record, content)
        state = await asyncio.to_thread(uploads.state, record)
        return _reply(request, state, status=201, headers={"Location": f"/v1/uploads/{state.id}"})

    @api.put(
        "/v1/uploads/{upload_id}",
        **_documented(
            {200: UploadState},
            *("not_found", "wrong_offset", "use_put_url", "wrong_digest", "unsupported_media_type", "storage_full"),
            body=binary_content((_BYTES,)),
        ),
    )
    async def put_part(request: Request, upload_id: str, offset: Offset) -> Response:
        """Append a part of a file, which begins at ``offset``."""
        check_query(request, "offset")
        check_bytes(request)
        uploads = hub().uploads
        record = await asyncio.to_thread(uploads.find, _owner(request), upload_id)
        await uploads.append(record, request.stream(), offset=offset)
        return _reply(request, await asyncio.to_thread(uploads.state, record))


def _add_upload(api: FastAPI, hub: Hub) -> None:
    @api.get("/v1/uploads/{upload_id}", **_documented({200: UploadState}, "not_found"))
    async def get_upload(request: Request, upload_id: str) -> Response:
        """Return how much of a file has arrived."""
        check_query(request)
        uploads = hub().uploads
        record = await asyncio.to_thread(uploads.find, _owner(request), upload_id)
        return _reply(request, await asyncio.to_thread(uploads.state, record))

    @api.delete("/v1/uploads/{upload_id}", **_documented({204: None}, "not_found"))
    async def delete_upload(request: Request, upload_id: str) -> Response:
        """Delete an upload."""
        check_query(request)
        uploads = hub().uploads
        record = await asyncio.to_thread(uploads.find, _owner(request), upload_id)
        await asyncio.to_thread(uploads.delete, record)
        return Response(status_code=204, headers=reply_headers(request))


def _add_jobs(api: FastAPI, hub: Hub) -> None:
    @api.post(
        "/v1/jobs",
        **_documented(
            {202: JobState, 200: JobState},
            *("unknown_model", "not_found", "unknown_task", "input_not_allowed", "upload_incomplete", "wrong_model"),
            *("no_labels", "idempotency_conflict", "unsupported_media_type", "too_many_jobs", "storage_full"),
            body=json_content("JobRequest", example=_SUBMITTED),
            parameters=(_KEY,),
            sent=("Location",),
        ),
    )
    async def submit(request: Request) -> Response:
        """Submit a job; with the header `Idempotency-Key` the same body gives the same job."""
        check_query(request)
        check_json(request)
        jobs = hub()
        asked = read_message(await _read(request), kind=JobRequest, limits=MESSAGE_LIMITS)
        submit = partial(jobs.submit, _owner(request), asked, key=_key(request), models=allowed_models(request))
        state, is_new = await asyncio.to_thread(submit)
        headers = {"Location": f"/v1/jobs/{state.id}"}
        return _reply(request, state, status=202 if is_new else 200, headers=headers)

    @api.get("/v1/jobs", **_documented({200: JobList}))
    async def list_jobs(request: Request) -> Response:
        """List the jobs of the owner of the key, newest first."""
        check_query(request)
        found = await asyncio.to_thread(hub().jobs_of, _owner(request))
        return _reply(request, JobList(jobs=found))

    @api.get("/v1/jobs/{job_id}", **_documented({200: JobState}, "not_found", sent=("X-Cells",)))
    async def get_job(request: Request, job_id: str) -> Response:
        """Return a job, and how far it is."""
        check_query(request)
        state, cells = await asyncio.to_thread(hub().report, _owner(request), job_id)
        return _reply(request, state, headers={"X-Cells": str(cells)})

    @api.delete("/v1/jobs/{job_id}", **_documented({202: JobState, 204: None}, "not_found"))
    async def remove_job(request: Request, job_id: str) -> Response:
        """Cancel a job; or, if it has ended, delete it with its result (204)."""
        check_query(request)
        state = await asyncio.to_thread(hub().remove, _owner(request), job_id)
        if state is None:
            return Response(status_code=204, headers=reply_headers(request))
        return _reply(request, state, status=202)


def _add_results(api: FastAPI, hub: Hub) -> None:
    @api.get("/v1/jobs/{job_id}/events", **_documented({200: EVENT_STREAM}, "not_found", sent=("X-Cells",)))
    async def events(request: Request, job_id: str) -> Response:
        """Stream a job as server-sent events, one per change, until it has ended or for a while."""
        check_query(request)
        jobs, owner = hub(), _owner(request)
        _, cells = await asyncio.to_thread(jobs.report, owner, job_id)

        async def stream() -> AsyncIterator[bytes]:
            """Encode the events."""
            yield b"retry: 1000\n\n"
            async for state in jobs.events(owner, job_id):
                yield f"event: {state.state}\ndata: {state.model_dump_json()}\n\n".encode()

        headers = reply_headers(request) | {"X-Cells": str(cells)}
        return StreamingResponse(stream(), headers=headers, media_type=EVENT_STREAM)

    @api.get(
        "/v1/jobs/{job_id}/result",
        **_documented(
            {200: _RESULTS, 206: _RESULTS, 307: None},
            *("not_found", "job_not_done", "bad_range"),
            parameters=(_RANGE,),
            sent=("X-Cells", "ETag", "Location", "Accept-Ranges", "Content-Disposition"),
        ),
    )
    async def result(request: Request, job_id: str) -> Response:
        """Return the file of the result, or redirect to it (307) if it is on S3."""
        check_query(request)
        jobs, owner = hub(), _owner(request)
        uri, state = await asyncio.to_thread(jobs.result, owner, job_id)
        assert state.result is not None, "a file has a description"
        _check_range(request, state.result.num_bytes)
        _, cells = await asyncio.to_thread(jobs.report, owner, job_id)
        headers = reply_headers(request) | {"X-Cells": str(cells), "ETag": f'"{state.result.sha256}"'}
        if storage.is_remote(uri):
            name = state.result.name
            url = await asyncio.to_thread(presign, uri, expires_s=RESULT_URL_S, save_as=name)
            return RedirectResponse(url, 307, headers=headers)
        return FileResponse(
            storage.local_path(uri), media_type=state.result.media_type, filename=state.result.name, headers=headers
        )


def _owner(request: Request) -> str:
    """Return the owner of the key, as the edge found out; without keys all requests have the same."""
    return str(request.scope.get("state", {}).get("key_owner") or "")


def _key(request: Request) -> str | None:
    """Return the Idempotency-Key; raises RequestError if it is not one."""
    key = one_header(request, "Idempotency-Key") if "idempotency-key" in request.headers else None
    if key is not None and not (0 < len(key) <= MOST_KEY and key.isascii() and key.isprintable()):
        raise RequestError(
            "The header Idempotency-Key is not valid.", remedy=f"Send 1 to {MOST_KEY} printable ASCII characters."
        )
    return key


def _check_range(request: Request, num_bytes: int) -> None:
    """Raise RequestError unless the header Range, if there is one, asks for one part that the file has."""
    given = one_header(request, "Range")
    parts = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", given)
    if not given:
        return
    first, last = parts.groups() if parts else ("", "")
    fits = int(first) < num_bytes and (not last or int(last) >= int(first)) if first else int(last or 0) > 0
    if not fits:
        raise RequestError(
            f"The file has {num_bytes} bytes, and not the range {given[:80]!r}.",
            remedy="Ask for one part: `Range: bytes=FIRST-LAST`.",
            code="bad_range",
            num_bytes=num_bytes,
        )


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
    answers: dict[int, type[Message] | str | None],
    *codes: str,
    body: dict[str, Any] | None = None,
    parameters: Sequence[dict[str, Any]] = (),
    sent: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the OpenAPI entries of a route that reads and writes by itself.

    ``answers`` are by status; a text is the media type of a file. ``codes`` are those of its own problems, ``sent`` its
    headers.
    """
    found: dict[int, dict[str, Any]] = {}
    for status, answer in answers.items():
        found[status] = {"description": _MEANING[status], "headers": headers(*sent)}
        if isinstance(answer, str):
            found[status]["content"] = binary_content(answer.split(", "))
        elif answer is not None:
            found[status]["content"] = json_content(answer.__name__)
    extra = problems("jobs_off", "malformed_payload", "store_unavailable", *codes) | {"parameters": list(parameters)}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": body}
    return {"response_class": Response, "status_code": min(answers), "responses": found, "openapi_extra": extra}


SCHEMAS = (JobRequest, JobState, JobList, UploadRequest, UploadState)
