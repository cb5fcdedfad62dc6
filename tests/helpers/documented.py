"""Compare answers with docs/openapi.json: what is not documented fails, whatever asked.

Clients of tests take ``CHECKED`` as their event hooks, so that every answer in any test is compared.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import jsonschema

from cytoray.serving.problems import CASES, PROBLEM_TYPE

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"
#: Paths that are not documented: the page and its API, which change together, the documents themselves, and the route
#: of a task that only tests have.
INTERNAL = re.compile(r"/|/assets/.*|/explorer/.*|/docs(/.*)?|/openapi\.json|/v1/counts")


class NotDocumented(AssertionError):
    """An answer that the document does not have."""


@cache
def document() -> dict[str, Any]:
    """Return the document."""
    found: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return found


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the operations by method and path."""
    paths = document()["paths"].items()
    return {(method.upper(), path): about for path, methods in paths for method, about in methods.items()}


def responses_of(operation: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the answers of an operation by status."""
    return {int(status): _resolved(answer) for status, answer in operation["responses"].items()}


def codes_of(answer: dict[str, Any]) -> tuple[str, ...]:
    """Return the codes of problems that an answer may have."""
    content = answer.get("content", {}).get(PROBLEM_TYPE)
    return () if content is None else tuple(content["schema"]["allOf"][1]["properties"]["code"]["enum"])


def template_of(path: str) -> str | None:
    """Return the documented path of a path, the most specific one; None if it is not documented."""
    found = [template for template, pattern in _patterns().items() if pattern.fullmatch(path)]
    return min(found, key=lambda template: (template.count("{"), -len(template)), default=None)


def check(method: str, path: str, status: int, headers: Any, content: bytes) -> None:
    """Raise NotDocumented unless an answer is documented: status, media type, body and code."""
    template = template_of(unquote(path))
    about = operations().get((method, template)) if template is not None else None
    place = f"{method} {path}: {status} {headers.get('content-type', '')} {content[:300]!r}"
    if about is None:
        _check_unknown(template, path, status, headers, content, place)
        return
    answer = responses_of(about).get(status)
    if answer is None:
        raise NotDocumented(place)
    _check_content(answer, f"{method} {template} {status}", headers, content, place)
    missing = [name for name in ("x-request-id",) if name not in headers]
    missing += [name for name in ("retry-after",) if status in (429, 503) and name not in headers]
    if missing:
        raise NotDocumented(f"{place}: without {missing}")
    documented = {name.lower() for name in answer.get("headers", {})}
    surplus = {name for name in headers if name.startswith(("x-", "ratelimit", "server-timing"))} - documented
    if surplus - {"x-content-type-options"}:
        raise NotDocumented(f"{place}: undocumented {surplus}")


async def check_answer(response: httpx.Response) -> None:
    """Check an answer as httpx's hook; a stream is only checked by its head."""
    content = b"" if _is_stream(response) else await response.aread()
    request = response.request
    check(
        request.method, request.url.raw_path.decode().partition("?")[0], response.status_code, response.headers, content
    )


def check_sync_answer(response: httpx.Response) -> None:
    """Check an answer as the hook of a client that is not asynchronous."""
    content = b"" if _is_stream(response) else response.read()
    request = response.request
    check(
        request.method, request.url.raw_path.decode().partition("?")[0], response.status_code, response.headers, content
    )


CHECKED: Any = {"response": [check_answer]}


def _is_stream(response: httpx.Response) -> bool:
    return response.headers.get("content-type", "").startswith("text/event-stream")


def _check_unknown(template: str | None, path: str, status: int, headers: Any, content: bytes, place: str) -> None:
    """Check an answer about a method or path without a documented operation: a problem, unless the page has it."""
    if status < 400 and template is None and INTERNAL.fullmatch(path):
        return
    allowed = sorted(method for method, known in operations() if known == template)
    if template is not None and status == 405 and headers.get("allow") != ", ".join(allowed):
        raise NotDocumented(f"{place}: Allow is {headers.get('allow')}, expected {allowed}")
    if status == 400 and not content:  # the answer to HEAD has no body
        return
    if status < 400 or headers.get("content-type") != PROBLEM_TYPE:
        raise NotDocumented(place)
    if content:
        problem = json.loads(content)
        _validator("Problem").validate(problem)
        if CASES[problem["code"]].status != status:
            raise NotDocumented(place)


def _check_content(answer: dict[str, Any], key: str, headers: Any, content: bytes, place: str) -> None:
    media_types = answer.get("content", {})
    given = headers.get("content-type", "")
    if not media_types:
        if content or given:
            raise NotDocumented(place)
        return
    if given not in media_types and given.partition(";")[0] not in media_types:
        raise NotDocumented(place)
    if "json" in given and content:
        media = media_types.get(given) or media_types[given.partition(";")[0]]
        mistake = jsonschema.exceptions.best_match(
            _validator_of(key, given, json.dumps(media["schema"])).iter_errors(json.loads(content))
        )
        if mistake is not None:
            raise NotDocumented(f"{place}: {mistake.message[:500]}")


@cache
def _validator_of(_key: str, _media_type: str, schema: str) -> Any:
    return jsonschema.Draft202012Validator({**json.loads(schema), "components": document()["components"]})


@cache
def _validator(name: str) -> Any:
    return _validator_of(name, "", json.dumps({"$ref": f"#/components/schemas/{name}"}))


def _resolved(answer: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in answer:
        return answer
    found: dict[str, Any] = document()["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    return found


@cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Return a pattern for each documented path; the name of a model may have a slash."""
    return {
        template: re.compile(
            "".join(
                (".+" if part == "{model}" else "[^/]+") if part.startswith("{") else re.escape(part)
                for part in re.split(r"(\{\w+\})", template)
            )
        )
        for template in document()["paths"]
    }
