"""Decide what a job may read: uploads, and what is below the places that the operator allows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cytoray.errors import RequestError
from cytoray.serving.jobs.config import CORPUS

_CORPUS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:@\d+)?")
_S3 = re.compile(r"s3://([a-z0-9][a-z0-9.-]*)/(.*)")
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f?#*\\]|::")  # versions, wildcards and chains of file systems
MAX_FILES = 100_000  # below a local prefix


def check_uri(uri: str, *, allowed: Sequence[str]) -> str:
    """Return a URI that a job may read, a local one as a path without symbolic links.

    Raises RequestError unless it is below one of the ``allowed`` places, and so is all that it leads to.
    """
    if _FORBIDDEN.search(uri):
        raise _refused(uri)
    if uri.startswith("s3://"):
        return _check_object(uri, allowed)
    if uri.startswith("file://"):
        parts = urlsplit(uri)
        if parts.netloc:
            raise _refused(uri)
        path = unquote(parts.path)
        if _FORBIDDEN.search(path):
            raise _refused(uri)
        return _check_path(path, uri, allowed)
    if "://" in uri or not uri.startswith("/"):
        raise _refused(uri)
    return _check_path(uri, uri, allowed)


def check_corpus(name: str, *, allowed: Sequence[str]) -> str:
    """Return the name of a corpus that a job may read, with its version if it has one; raises RequestError."""
    if not _CORPUS_NAME.fullmatch(name) or not {f"{CORPUS}*", CORPUS + name.partition("@")[0]} & set(allowed):
        raise _refused(f"corpus {name}")
    return name


def _check_object(uri: str, allowed: Sequence[str]) -> str:
    match = _S3.fullmatch(uri)
    if match is None or any(part in ("", ".", "..") for part in match[2].removesuffix("/").split("/")):
        raise _refused(uri)
    for place in allowed:
        if place.startswith("s3://") and uri.startswith(place.rstrip("/") + "/"):
            return uri
    raise _refused(uri)


def _check_path(path: str, uri: str, allowed: Sequence[str]) -> str:
    """Return the real path; RequestError if it, a file below it, or one that is read along, is elsewhere."""
    real = os.path.realpath(path)
    roots = [os.path.realpath(place) for place in allowed if place.startswith("/")]
    root = next((root for root in roots if _is_below(real, root)), None)
    if root is None:
        raise _refused(uri)
    if not os.path.exists(real):
        raise RequestError("There is no such file.", remedy="Check the path.", code="not_found", pointer="/input/uri")
    for number, file in enumerate(_files(Path(real))):
        if number >= MAX_FILES:
            raise RequestError("There are too many files below this prefix.", remedy="Name an inner folder.")
        if not _is_below(os.path.realpath(file), root):
            raise _refused(uri)
    return real + ("/" if path.endswith("/") else "")


def _files(path: Path) -> Iterable[Path]:
    """All files below a folder, or those beside a MatrixMarket file, which are read along."""
    if path.is_dir():
        for folder, folders, files in os.walk(path):
            yield from (Path(folder) / name for name in (*folders, *files))
    elif ".mtx" in path.name:
        yield from path.parent.iterdir()


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _refused(uri: str) -> RequestError:
    return RequestError(
        f"This service does not read {uri!r} for jobs.",
        remedy="Upload the file (POST /v1/uploads), or ask the operator which places are in jobs.allowed_inputs.",
        code="input_not_allowed",
        pointer="/input",
    )
