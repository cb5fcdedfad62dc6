"""What a request says beside its body, read strictly: parameters that are not known, and headers that disagree."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import Request

from cytoray.errors import RequestError
from cytoray.serving.payloads.media import JSON


def check_query(request: Request, *known: str) -> None:
    """Raise RequestError for a parameter of the query that is not ``known``, or that is given twice."""
    check_parameters((name for name, _ in request.query_params.multi_items()), known)


def check_parameters(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise RequestError for a name that is not ``known``, or that occurs twice."""
    seen: set[str] = set()
    allowed = tuple(known)
    for name in names:
        if name not in allowed:
            listed = f"It takes {', '.join(allowed)}." if allowed else "It takes none."
            raise RequestError(f"The query has an unknown parameter {name!r}.", remedy=listed, pointer=f"/{name}")
        if name in seen:
            raise RequestError(f"The query gives {name!r} twice.", remedy="Give it once.", pointer=f"/{name}")
        seen.add(name)


def one_header(request: Request, name: str) -> str:
    """Return a header, empty if it is missing; raises RequestError if it is given with different values."""
    values = set(request.headers.getlist(name))
    if len(values) > 1:
        raise RequestError(f"The header {name} is given with different values.", remedy="Send it once.")
    return next(iter(values), "")


def check_json(request: Request) -> None:
    """Raise RequestError unless the body is JSON that is not compressed."""
    media_type = one_header(request, "Content-Type").partition(";")[0].strip().lower()
    encoding = _encoding(request)
    if media_type != JSON or encoding != "identity":
        raise RequestError(
            f"The body has content type {media_type or 'unknown'!r} and encoding {encoding!r}.",
            remedy=f"Send {JSON} as Content-Type, without Content-Encoding.",
            code="unsupported_media_type",
            pointer="",
            accepted=[JSON],
            encodings=["identity"],
        )


def check_bytes(request: Request) -> None:
    """Raise RequestError for a compressed body: a file is stored as it is sent."""
    encoding = _encoding(request)
    if encoding != "identity":
        raise RequestError(
            f"The body has the encoding {encoding!r}.",
            remedy="Send the file as it is, without Content-Encoding.",
            code="unsupported_media_type",
            pointer="",
            encodings=["identity"],
        )


def _encoding(request: Request) -> str:
    return one_header(request, "Content-Encoding").strip().lower() or "identity"
