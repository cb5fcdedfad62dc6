"""OpenAPI entries that routes share: problems by their codes, headers, who may ask, and parameters.

A route lists the codes of its own problems by ``problems``; ``complete`` turns them into answers by status, with those
that the edge gives to any request, and adds headers and keys. tests/serving/test_routes_documented.py compares this
with what the application answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cytoray.serving.edge.guard import OPEN
from cytoray.serving.payloads.media import JSON
from cytoray.serving.problems import CASES, PROBLEM_TYPE

OWN_PROBLEMS = "x-problems"  # of an operation, until the document is complete
CLIENT_GONE = 499  # nobody receives it
#: Of any route: the edge refuses requests, or the replica is lost.
ANY: tuple[str, ...] = (
    *("body_timeout", "too_large", "internal", "poison_request", "draining", "overloaded", "replica_lost"),
    *("model_not_ready", "deadline_exceeded"),
)
KEYED = ("unauthenticated", "forbidden", "rate_limited")
BEARER = "ApiKey"
HEADERS: dict[str, tuple[str, str]] = {
    "X-Request-Id": ("The id of the request: the client's, if that is 1 to 128 of A-Z a-z 0-9 . _ : -", "string"),
    "X-Model-Version": ("Version of the model that answered, or of the first of the service.", "string"),
    "X-Model": ("Name of the model that answered.", "string"),
    "X-Cells": ("Number of cells that count in the quota of the key.", "integer"),
    "Server-Timing": ("Milliseconds of parsing (tok), waiting (queue) and the model (fwd).", "string"),
    "X-Problem-Code": ("The `code` of the problem.", "string"),
    "Retry-After": ("Seconds after which the request may be sent again.", "integer"),
    "WWW-Authenticate": ("The scheme of keys: Bearer.", "string"),
    "Link": ("Where to send more cells: jobs (with the code `use_jobs`).", "string"),
    "Location": ("Where to find what was created, or the file.", "string"),
    "ETag": ("SHA-256 of the file.", "string"),
    "Accept-Ranges": ("bytes: parts of the file can be asked for by `Range`.", "string"),
    "Content-Disposition": ("Name of the file.", "string"),
    "RateLimit-Limit": ("Cells per minute of the key, if it has a quota.", "number"),
    "RateLimit-Remaining": ("Cells that are left.", "integer"),
    "RateLimit-Reset": ("Seconds until the quota is full again.", "integer"),
}
QUOTA = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
#: By path: that of what is created there, the parameter with its id, and what can be asked about it.
CREATES: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    "/v1/uploads": ("/v1/uploads/{upload_id}", "upload_id", (("", "get"), ("", "put"), ("", "delete"))),
    "/v1/jobs": (
        "/v1/jobs/{job_id}",
        "job_id",
        (("", "get"), ("/events", "get"), ("/result", "get"), ("", "delete")),
    ),
}
ANSWERED = ("X-Request-Id", "X-Model-Version")
_OF_STATUS: dict[int, tuple[str, ...]] = {
    401: ("WWW-Authenticate",),
    413: ("Link",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
_SENT_BY_ALL = (*ANSWERED, "X-Problem-Code", *QUOTA)
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "An id for logs, returned with the answer: 1 to 128 of A-Z a-z 0-9 . _ : -. Instead of another one "
    "the request gets an id of the service.",
    "schema": {"type": "string"},
}


def problems(*codes: str) -> dict[str, Any]:
    """Return the entry of an operation with the codes of its own problems."""
    assert all(code in CASES for code in codes), codes
    return {OWN_PROBLEMS: list(codes)}


def headers(*names: str) -> dict[str, Any]:
    """Return the entries of headers of an answer."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def schema_of(model: str) -> dict[str, Any]:
    """Return a reference to a schema."""
    return {"$ref": f"#/components/schemas/{model}"}


def json_content(model: str, *, example: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a JSON body."""
    return {JSON: {"schema": schema_of(model)} | ({} if example is None else {"example": dict(example)})}


def binary_content(media_types: Iterable[str]) -> dict[str, Any]:
    """Return the content of bodies that are no text; docs/serving.md describes them."""
    return {name: {"schema": {"type": "string", "format": "binary", "minLength": 1}} for name in media_types}


def query_parameter(name: str, about: str, schema: Mapping[str, Any], *, required: bool = False) -> dict[str, Any]:
    """Return a parameter of the query of the URL."""
    return {"name": name, "in": "query", "description": about, "required": required, "schema": dict(schema)}


def path_parameter(name: str, about: str) -> dict[str, Any]:
    """Return a parameter of the path."""
    return {"name": name, "in": "path", "description": about, "required": True, "schema": {"type": "string"}}


def header_parameter(name: str, about: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a header of requests."""
    return {"name": name, "in": "header", "description": about, "required": False, "schema": dict(schema)}


def complete(document: dict[str, Any]) -> None:
    """Add the answers to problems, headers, parameters and keys that all operations have."""
    components = document.setdefault("components", {})
    components["headers"] = {
        name: {"description": about, "schema": {"type": kind}} for name, (about, kind) in HEADERS.items()
    }
    about_key = "A key of the operator (`cytoray keys new`), if the service has keys."
    components["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer", "description": about_key}}
    answers: dict[str, Any] = components.setdefault("responses", {})
    for path, operations in document["paths"].items():
        is_open = _is_open(path)
        for operation in operations.values():
            _add_links(operation, path)
            operation["security"] = [] if is_open else [{BEARER: []}]
            operation["parameters"] = [*operation.get("parameters", ()), _REQUEST_ID]
            _add_headers(operation["responses"], with_quota=not is_open)
            codes = (*operation.pop(OWN_PROBLEMS, ()), *ANY, *(() if is_open else KEYED))
            for status, named in _by_status(codes).items():
                name = f"Problem{status}-{'-'.join(named)}"
                answers[name] = _answer(status, named)
                operation["responses"][str(status)] = {"$ref": f"#/components/responses/{name}"}
    schemas = components["schemas"]
    schemas["Problem"]["properties"]["code"]["enum"] = sorted(
        code for code, case in CASES.items() if case.status != CLIENT_GONE
    )
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, which no route answers
        schemas.pop(name, None)


def _is_open(path: str) -> bool:
    return any(path == place or (place != "/" and path.startswith(f"{place}/")) for place in OPEN)


def _add_links(operation: dict[str, Any], path: str) -> None:
    """Add to what creates something where it is found by its id."""
    for status, answer in operation["responses"].items():
        place, name, methods = CREATES.get(path, ("", "", ()))
        if place and int(status) < 300 and "requestBody" in operation:
            answer["links"] = {
                f"{method} {below}": {
                    "operationRef": f"#/paths/{below.replace('/', '~1')}/{method}",
                    "parameters": {name: "$response.body#/id"},
                }
                for below, method in ((f"{place}{end}", method) for end, method in methods)
            }


def _add_headers(responses: dict[str, Any], *, with_quota: bool) -> None:
    """Add the headers of all answers to those that are no problems, and drop FastAPI's own refusal."""
    responses.pop("422", None)
    for status, answer in responses.items():
        if int(status) < 400:
            answer["headers"] = headers(*ANSWERED, *(QUOTA if with_quota else ())) | answer.get("headers", {})


def _by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    """Return the codes of each status, in the order of the catalogue."""
    asked = set(codes)
    found: dict[int, list[str]] = {}
    for code, case in CASES.items():
        if code in asked:
            found.setdefault(case.status, []).append(code)
    return dict(sorted(found.items()))


def _answer(status: int, codes: list[str]) -> dict[str, Any]:
    """Return the answer with a problem of one of ``codes``."""
    has_link = "use_jobs" in codes
    more = tuple(name for name in _OF_STATUS.get(status, ()) if name != "Link" or has_link)
    only = {"properties": {"code": {"enum": codes}, "status": {"const": status}}}
    return {
        "description": " ".join(f"`{code}`: {CASES[code].title}." for code in codes),
        "headers": headers(*_SENT_BY_ALL, *more),
        "content": {PROBLEM_TYPE: {"schema": {"allOf": [schema_of("Problem"), only]}}},
    }
