"""All the ways a request can fail: one table from error code to HTTP status, and the problem+json responses."""

from __future__ import annotations

import errno
import json
import logging
import re
import uuid
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route

from cytoray.errors import RequestError, ServingError, StorageError

logger = logging.getLogger(__name__)


class Case(NamedTuple):
    """One kind of problem."""

    status: int
    title: str


CASES = {
    "malformed_payload": Case(400, "The body is not a valid request for this route"),
    "unsupported_protocol": Case(400, "This service does not speak this protocol"),
    "unauthenticated": Case(401, "A valid API key is required"),
    "forbidden": Case(403, "This API key does not allow the request"),
    "unknown_model": Case(404, "The service does not have this model"),
    "input_not_allowed": Case(403, "Jobs of this service do not read this place"),
    "not_found": Case(404, "Unknown path"),
    "method_not_allowed": Case(405, "This path does not support this method"),
    "not_acceptable": Case(406, "The answer is not available in the accepted media types"),
    "body_timeout": Case(408, "The request did not arrive in time"),
    "no_labels": Case(409, "This model does not predict cell types"),
    "wrong_offset": Case(409, "This part of the file is not the next one"),
    "use_put_url": Case(409, "The file is to be sent to a pre-signed URL"),
    "upload_incomplete": Case(409, "The upload is not complete"),
    "idempotency_conflict": Case(409, "This Idempotency-Key stands for another request"),
    "job_not_done": Case(409, "The job has no result"),
    "wrong_model": Case(409, "This model does not answer this kind of request"),
    "too_large": Case(413, "The request exceeds the limits of the service"),
    "use_jobs": Case(413, "Too many cells for one request"),
    "unsupported_media_type": Case(415, "Unsupported media type of the body"),
    "bad_range": Case(416, "The file does not have this range"),
    "unknown_genes": Case(422, "The model does not know the genes of this request"),
    "unknown_proteins": Case(422, "The model does not predict these proteins"),
    "unknown_group": Case(422, "The network does not have this group of cells"),
    "unknown_perturbations": Case(422, "The model does not know these perturbations"),
    "unknown_task": Case(422, "Jobs do not do this task"),
    "unreadable_input": Case(422, "The cells of the job cannot be read"),
    "wrong_digest": Case(422, "The file is not the announced one"),
    "bad_values": Case(422, "Some values are negative, not finite or too large"),
    "bad_matrix": Case(422, "Genes, indices and values are inconsistent"),
    "rate_limited": Case(429, "The quota of this API key is used up"),
    "too_many_jobs": Case(429, "Too many unfinished jobs of one owner"),
    "http_error": Case(400, "The request could not be handled"),
    "client_closed": Case(499, "The client closed the connection"),
    "internal": Case(500, "Internal error of the service"),
    "poison_request": Case(500, "Replicas end while they work on this request"),
    "job_lost": Case(500, "The processes that worked on the job have ended"),
    "jobs_off": Case(503, "This service takes no jobs"),
    "fitting": Case(503, "The model is being fitted to the genes of this request"),
    "model_not_ready": Case(503, "The model is not ready"),
    "overloaded": Case(503, "The service has too many requests"),
    "draining": Case(503, "The service is being stopped"),
    "replica_lost": Case(503, "The process that worked on this request has ended"),
    "too_many_sessions": Case(503, "All sessions of the explorer are in use"),
    "store_unavailable": Case(503, "The store of the service does not answer"),
    "deadline_exceeded": Case(504, "The answer took too long"),
    "storage_full": Case(507, "The service has no space left for files"),
}
_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "unsupported_media_type"}
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  # a disk, a quota, or the limit of a process
PROBLEM_TYPE = "application/problem+json"
_OVERHEAD = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
MOST_CHARACTERS, MOST_TEXT, MOST_ENTRIES = 300, 1_500, 20  # of a member of a problem, its detail, and of a list
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_id_of(request: Request) -> str:
    """Return the id of this request: the client's ``X-Request-Id`` if it is valid, else a new one."""
    if not hasattr(request.state, "request_id"):
        request.state.request_id = valid_request_id(request.headers.get("x-request-id", ""))
    return str(request.state.request_id)


def valid_request_id(given: str) -> str:
    """Return the client's id of a request if it is short and printable, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def reply_headers(request: Request) -> dict[str, str]:
    """Return the headers of every reply, problems included."""
    state = request.app.state
    headers = {"X-Model-Version": state.models.default.model.version, **_OVERHEAD}
    if state.echo_request_id:
        headers["X-Request-Id"] = request_id_of(request)
    return headers


def problem_response(request: Request, code: str, *, detail: str, **members: Any) -> Response:
    """Build the problem+json response for ``code``; ``members`` are further fields, such as the bad entries."""
    case = CASES[code]
    named = {"detail": detail, "instance": request.url.path, "request_id": request_id_of(request)}
    content = problem_body(code, **named, **members)
    headers = reply_headers(request) | {"X-Problem-Code": code} | _retry_after(case.status, members)
    if code == "use_jobs":
        headers["Link"] = '</v1/jobs>; rel="alternate"'
    return Response(content, case.status, headers=headers, media_type=PROBLEM_TYPE)


def problem_body(code: str, *, detail: str, instance: str, request_id: str, **members: Any) -> bytes:
    """Encode the problem ``code`` about a request for the path ``instance``."""
    case = CASES[code]
    body = {
        "type": f"urn:cytoray:problem:{code.replace('_', '-')}",
        "title": case.title,
        "status": case.status,
        "detail": shortened(detail, most=MOST_TEXT),
        "instance": shortened(instance),
        "code": code,
        "request_id": request_id,
    }
    return json.dumps(shortened(members) | body, default=str).encode()


def _retry_after(status: int, members: dict[str, Any]) -> dict[str, str]:
    """Return the header that says when to send a request again, if the problem may have passed by then."""
    return {"Retry-After": str(members.get("retry_after_s", 1))} if status in {429, 503} else {}


def shortened(value: Any, *, most: int = MOST_CHARACTERS) -> Any:
    """Return a member of a problem without more of the client's input than a reader needs.

    Of a long text the start and the end are kept: the end of a detail is its remedy.
    """
    if isinstance(value, str) and len(value) > most:
        return f"{value[: most * 2 // 3]} … {value[-(most // 3) :]}"
    if isinstance(value, dict):
        return {shortened(str(key)): shortened(one) for key, one in list(value.items())[:MOST_ENTRIES]}
    if isinstance(value, list | tuple):
        return [shortened(one) for one in value[:MOST_ENTRIES]]
    return value


def add_problem_handlers(api: FastAPI) -> None:
    """Convert every error that leaves a route of ``api`` into a problem; no other code maps errors to statuses."""
    api.add_exception_handler(RequestError, _on_request_error)
    api.add_exception_handler(ServingError, _on_serving_error)
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    api.add_exception_handler(ClientDisconnect, _on_disconnect)
    api.add_exception_handler(OSError, _on_os_error)
    api.add_exception_handler(StorageError, _on_storage_error)
    api.add_exception_handler(Exception, _on_any_error)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    members = {key: value for key, value in error.details.items() if key != "code"}
    return problem_response(request, error.code, detail=str(error), **members)


async def _on_serving_error(request: Request, error: Exception) -> Response:
    logger.error("request %s: %s", request_id_of(request), error)
    return problem_response(request, "model_not_ready", detail=str(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _HTTP_CODES.get(error.status_code, "http_error")
    details = {
        "not_found": f"{request.url.path} is not a route of this service; see /docs.",
        "method_not_allowed": f"{request.url.path} does not support {request.method}; see /docs.",
    }
    response = problem_response(request, code, detail=details.get(code, str(error.detail)))
    response.headers.update(error.headers or {})
    if code == "method_not_allowed":
        response.headers["Allow"] = ", ".join(_allowed(request)) or response.headers.get("Allow", "")
    return response


def _allowed(request: Request) -> list[str]:
    """Return the methods of all routes of a path; the router names those of the first one only."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    path = next((route.path for route in routes if route.matches(request.scope)[0] == Match.PARTIAL), None)
    return sorted({method for route in routes if route.path == path for method in route.methods or ()})


async def _on_invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    mistakes = [(f"/{one['loc'][-1]}", str(one["msg"])) for one in error.errors()]
    pointer, problem = mistakes[0]
    errors = [{"pointer": place, "detail": text} for place, text in mistakes]
    return problem_response(
        request, "malformed_payload", detail=f"{pointer}: {problem}.", pointer=pointer, errors=errors
    )


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return problem_response(request, "client_closed", detail="The client closed the connection.")


async def _on_os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno not in FULL:
        raise error
    logger.error("request %s: %s", request_id_of(request), error)
    detail = "The disk of the service is full. Try again later, or ask its operator to free space."
    return problem_response(request, "storage_full", detail=detail)


async def _on_storage_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StorageError)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in FULL:
        return await _on_os_error(request, cause)
    if "://" not in str(error.details.get("uri", "")):
        return await _on_any_error(request, error)
    logger.error("request %s: %s", request_id_of(request), error)
    detail = "The store of the service does not answer. Try again later; its operator finds the cause in the log."
    return problem_response(request, "store_unavailable", detail=detail, retry_after_s=10)


async def _on_any_error(request: Request, error: Exception) -> Response:
    logger.error("request %s failed", request_id_of(request), exc_info=error)
    detail = "The service failed on this request. Its log has the cause: report the request_id to the operator."
    return problem_response(request, "internal", detail=detail)
