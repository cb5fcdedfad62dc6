"""Media types of requests and answers: which the service reads and writes, and what a client asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cytoray.errors import RequestError

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
NPZ = "application/x-npz"
H5AD = "application/x-h5ad"
BODIES = (JSON, ARROW, NPZ, H5AD)  # about cells; other requests are JSON
ANSWERS = (JSON, ARROW, PARQUET, H5AD)  # to cells; others are JSON
MODEL = "model"  # the member of a request, and of the query of its URL, that names a model
ENCODINGS = ("identity", "gzip", "zstd")


@dataclass(frozen=True)
class Form:
    """The form of a body, and of the answer that was asked for."""

    media_type: str = JSON
    encoding: str = "identity"
    options: Mapping[str, str] = field(default_factory=dict)  # members of the request in the query of its URL
    answer: str = JSON
    model: str | None = None  # that was asked, if the request names one


JSON_FORM = Form()


def read_form(
    *, content_type: str, content_encoding: str, accept: str, options: Iterable[tuple[str, str]], about_cells: bool
) -> Form:
    """Return the form that the headers of a request describe; RequestError for one that is not supported."""
    bodies, answers = (BODIES, ANSWERS) if about_cells else ((JSON,), (JSON,))
    media_type = content_type.partition(";")[0].strip().lower()
    encoding = content_encoding.strip().lower() or "identity"
    if media_type not in bodies or encoding not in ENCODINGS:
        raise RequestError(
            f"The body has content type {media_type or 'unknown'!r} and encoding {encoding!r}.",
            remedy=f"Send {' or '.join(bodies)} as Content-Type; Content-Encoding may be gzip or zstd.",
            code="unsupported_media_type",
            pointer="",
            accepted=list(bodies),
            encodings=list(ENCODINGS),
        )
    given: dict[str, str] = {}
    for name, text in options:
        if media_type == JSON and name != MODEL:
            raise RequestError(
                f"The query has a parameter {name[:80]!r}, which is only for other bodies than JSON.",
                remedy="Write it into the body, or leave it out.",
                pointer=f"/{name[:80]}",
            )
        if name in given:
            raise RequestError(f"The query gives {name!r} twice.", remedy="Give it once.", pointer=f"/{name}")
        given[name] = text
    model = given.pop(MODEL, None)
    return Form(media_type, encoding, given, choose_answer(accept, answers), model)


def choose_answer(accept: str, answers: tuple[str, ...]) -> str:
    """Return the media type of the answer that suits ``accept`` best; RequestError ``not_acceptable`` if none does."""
    ranges = [_media_range(part) for part in accept.split(",") if part.strip()][:32]
    if not ranges:
        return answers[0]
    qualities = {one: _quality(one, ranges) for one in answers}
    best = max(answers, key=lambda one: qualities[one])  # the first of several
    if qualities[best] <= 0:
        raise RequestError(
            "None of the media types in `Accept` is available for this answer.",
            remedy=f"Accept {' or '.join(answers)}.",
            code="not_acceptable",
            available=list(answers),
        )
    return best


def _media_range(part: str) -> tuple[str, float]:
    """Return a media range and its quality; one that is not a number counts as 0."""
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
    is_number = quality.replace(".", "", 1).isdecimal() and quality.isascii() and len(quality) <= 5
    return name, float(quality) if is_number else 0.0


def _quality(media_type: str, ranges: list[tuple[str, float]]) -> float:
    """Return the quality of a media type by the most specific range that has it."""
    for pattern in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        found = [quality for name, quality in ranges if name == pattern]
        if found:
            return max(found)
    return 0.0
