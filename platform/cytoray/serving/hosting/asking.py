"""Find the name of the model that a request asks: in its path, its query or its body, before the body is parsed."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import pydantic_core

from cytoray.errors import RequestError
from cytoray.serving.config import Limits
from cytoray.serving.payloads import arrow_cells
from cytoray.serving.payloads.encodings import decode
from cytoray.serving.payloads.media import ARROW, JSON, MODEL, Form
from cytoray.serving.payloads.stopping import NEVER, Stop
from cytoray.tasks.messages import NAME_LENGTH

QUICK_BYTES = 2**20  # smaller bodies are searched within a millisecond

# A key of an object: inside of a string, its quotes would have a backslash. That it is a key of the request, and the
# only one, is checked when the body is parsed.
_MEMBER = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


async def find_asked(body: bytes, form: Form, *, path: str | None, limits: Limits) -> tuple[bytes, Form]:
    """Return a request with the name of the model that it asks in its form, and a body that is not compressed.

    Raises RequestError if it names two models, or if the body cannot be decompressed.
    """
    if form.encoding == "identity" and len(body) < QUICK_BYTES:
        return _find_asked(body, form, path=path, limits=limits, stop=NEVER)
    stop = Stop()
    try:
        return await asyncio.to_thread(_find_asked, body, form, path=path, limits=limits, stop=stop)
    finally:
        stop.set()  # threads cannot be cancelled: they look at this


def _find_asked(body: bytes, form: Form, *, path: str | None, limits: Limits, stop: Stop) -> tuple[bytes, Form]:
    body = decode(body, form.encoding, limits=limits, stop=stop)
    places = {"path": path, "query": form.model, "body": _named_in(body, form)}
    names = {place: name for place, name in places.items() if name is not None}
    if len(set(names.values())) > 1:
        named = " and ".join(f"{name[:NAME_LENGTH]!r} in its {place}" for place, name in names.items())
        raise RequestError(
            f"The request names more than one model: {named}.",
            remedy="Name it once.",
            code="malformed_payload",
            pointer=f"/{MODEL}",
        )
    return body, replace(form, encoding="identity", model=next(iter(names.values()), None))


def check_asked(name: str | None, form: Form) -> None:
    """Raise RequestError if a parsed request names another model than the one that was asked."""
    if name not in (None, form.model):
        raise RequestError(
            f"The body asks the model {name!r}, but its name was not found when the model was chosen.",
            remedy="Write the key `model` without escapes, or name the model in the query: ?model=NAME.",
            code="malformed_payload",
            pointer=f"/{MODEL}",
        )


def _named_in(body: bytes, form: Form) -> str | None:
    """Return the model that a body names."""
    if form.media_type == ARROW:
        metadata = arrow_cells.peek_metadata(body)
        if MODEL.encode() in metadata:
            return metadata[MODEL.encode()].decode("utf-8", "replace")
        return _member(metadata.get(arrow_cells.MEMBERS_KEY, b""))
    return _member(body) if form.media_type == JSON else None


def _member(text: bytes) -> str | None:
    """Return the value of ``model`` in a JSON object."""
    if b'"model"' not in text:  # much faster than the search
        return None
    match = _MEMBER.search(text)
    if match is None:
        return None
    try:
        name = pydantic_core.from_json(match[1])
    except ValueError:  # the parser reports it
        return None
    return str(name)
