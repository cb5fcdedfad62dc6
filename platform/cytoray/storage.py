"""Access to ``s3://`` and local paths: reads by range, atomic writes, put-if-absent, digests, clear errors.

Endpoint, region and credentials come from the standard ``AWS_*`` variables (``AWS_ENDPOINT_URL`` for any other S3 than
Amazon's). Buckets are never created here. Only idempotent calls are retried (by s3fs, with back-off). A silent
server is asked again after CYTORAY_S3_TIMEOUT_S, and a call fails CYTORAY_S3_DEADLINE_S after it began.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from cytoray.errors import ConflictError, DigestError, NotFoundError, StorageError
from cytoray.s3 import call as _call
from cytoray.s3 import find_endpoint as _endpoint
from cytoray.stores import explained, resolve
from cytoray.stores import is_remote as is_remote
from cytoray.stores import local_path as local_path

logger = logging.getLogger(__name__)
CREATE_ATTEMPTS = 5
READ_BLOCK_BYTES = 4 * 2**20  # one ranged GET; below ~4 MiB the request time dominates on S3
COPY_BYTES = 64 * 2**20  # of a file at a time, on its way to a store or back: an index may be larger than the memory


@dataclass(frozen=True)
class ObjectInfo:
    """Size and version of an object; ``version`` is the ETag on S3, size and mtime on a local disk."""

    uri: str
    num_bytes: int
    version: str
    modified_s: float = 0.0  # seconds since 1970


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI or a local path."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    """Return whether an object (or a local file or folder) exists."""
    system, path = resolve(uri)
    with explained(uri):
        return bool(_call(system, "exists", path))


def info(uri: str) -> ObjectInfo:
    """Return size and version of one object; NotFoundError if it does not exist."""
    system, path = resolve(uri)
    with explained(uri):
        entry = _call(system, "info", path)
        if entry["type"] == "directory":
            remedy = "Name the file itself."
            raise StorageError(f"{uri} is a folder, not a file.", remedy=remedy, uri=uri, is_folder=True)
    return _object(uri, entry)


def list_objects(uri: str, *, temporary: bool = False) -> list[ObjectInfo]:
    """List every object below a prefix, sorted by URI, with size and version; a missing prefix gives an empty list.

    ``folder/`` objects of S3 consoles are excluded, and so are incomplete files of dead writers unless ``temporary``.
    """
    system, path = resolve(uri)
    with explained(uri):
        found = _call(system, "find", path, detail=True)
    names = (name for name in sorted(found) if not name.endswith("/") and (temporary or not _is_temporary(name)))
    return [_object(f"s3://{name}" if is_remote(uri) else name, found[name]) for name in names]


def list_files(uri: str) -> list[str]:
    """List the full URIs of every object below a prefix."""
    return [entry.uri for entry in list_objects(uri)]


def _object(uri: str, entry: dict[str, Any]) -> ObjectInfo:
    """Convert a file system's description of an object."""
    version = str(entry.get("ETag", "")).strip('"') or f"{entry['size']}-{entry['mtime']}"
    modified_s = entry["LastModified"].timestamp() if "LastModified" in entry else entry["mtime"]
    return ObjectInfo(uri, int(entry["size"]), version, float(modified_s))


def _temporary_name(name: str) -> str:
    """Return a temporary name beside ``name``, which listings exclude, for a file that may never be completed."""
    return f".{name}.{uuid.uuid4().hex}.part"


def _is_temporary(path: str) -> bool:
    """Return whether ``_temporary_name`` made this name."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".part")


def open_read(uri: str) -> BinaryIO:
    """Open a seekable binary file that fetches ranges as they are read."""
    system, path = resolve(uri)
    with explained(uri):
        return cast("BinaryIO", system.open(path, "rb", block_size=READ_BLOCK_BYTES, cache_type="readahead"))


def read_bytes(uri: str, *, start: int | None = None, end: int | None = None, sha256: str | None = None) -> bytes:
    """Read an object, or its bytes ``start`` to ``end``; with ``sha256`` given, verify them.

    If the digest differs, the object is read once more before DigestError: a bit may have flipped on the wire.
    """
    system, path = resolve(uri)
    if start is not None and start == end:
        return b""  # S3 ignores an empty range and sends the whole object
    for attempt in range(2):
        with explained(uri):
            data = cast("bytes", _call(system, "cat_file", path, start=start, end=end))
        if sha256 is None or (seen := hashlib.sha256(data).hexdigest()) == sha256:
            return data
        logger.warning("%s: digest differs at attempt %d", uri, attempt + 1)
    raise DigestError(
        f"{uri}: the stored bytes have changed: expected SHA-256 {sha256}, seen {seen}.",
        remedy="Restore this object from a copy, or create it again from its source.",
        uri=uri,
        expected=sha256,
        seen=seen,
    )


def find_bytes(uri: str) -> bytes | None:
    """Read a whole object, or return None if it does not exist: one request, not two as with ``exists``."""
    try:
        return read_bytes(uri)
    except NotFoundError:
        return None


def read_ranges(uri: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read several byte ranges ``(start, end)`` of one object, from a remote store all at once."""
    system, path = resolve(uri)
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    with explained(uri):
        parts = cast("list[bytes]", _call(system, "cat_ranges", [path] * len(ranges), starts, ends, on_error="raise"))
    for part, (start, end) in zip(parts, ranges, strict=True):
        if len(part) != end - start:
            problem = f"{uri}: of bytes {start:,} to {end:,} only {len(part):,} were received."
            raise StorageError(problem, remedy="The object was truncated or replaced: read it again.", uri=uri)
    return parts


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object, visible only when complete."""
    system, path = resolve(uri)
    with explained(uri):
        if is_remote(uri):
            _call(system, "pipe_file", path, data)
        else:
            _replace(Path(path), (data,))


def write_file(uri: str, file: Path) -> None:
    """Write a whole object from a local file of any size, visible only when complete."""
    system, path = resolve(uri)
    with explained(uri):
        if is_remote(uri):
            _call(system, "put_file", str(file), path)
        else:
            with file.open("rb") as source:
                _replace(Path(path), iter(lambda: source.read(COPY_BYTES), b""))


def write_digested(uri: str, data: bytes) -> str:
    """Write a whole object as ``write_bytes`` does; return its SHA-256 (hex)."""
    write_bytes(uri, data)
    return hashlib.sha256(data).hexdigest()


def put_if_absent(uri: str, data: bytes) -> str:
    """Write an object only if it does not exist; return its SHA-256 (hex), raise ConflictError if it does.

    ``data`` should name its writer (an attempt id): if a lost reply makes our own write look like another writer's,
    reading back the same bytes shows that it was ours.
    """
    digest = hashlib.sha256(data).hexdigest()
    try:
        if is_remote(uri):
            _put_object_if_absent(uri, data)
        else:
            _link_if_absent(uri, data)
    except FileExistsError as error:
        if read_bytes(uri) == data:
            return digest
        raise ConflictError(
            f"{uri}: another writer created this object first.", remedy="Use that object, or another name.", uri=uri
        ) from error
    return digest


def _link_if_absent(uri: str, data: bytes) -> None:
    """Put if absent on a local disk: a hard link is atomic, fails if the name exists, and its content is complete."""
    path = local_path(uri)
    with explained(uri):
        temporary = _write_temporary(path, (data,))
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    """Write ``pieces`` under a temporary name, then give them the name ``path``."""
    temporary = _write_temporary(path, pieces)
    try:
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_temporary(path: Path, pieces: Iterable[bytes]) -> Path:
    """Write and sync ``pieces`` under a temporary name beside ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # not that ``path`` is taken
        raise NotADirectoryError(errno.ENOTDIR, "a file has the name of a folder", str(path.parent)) from error
    temporary = path.with_name(_temporary_name(path.name))
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _put_object_if_absent(uri: str, data: bytes) -> None:
    """PUT conditionally; on a store that ignores the condition, check first and warn that races are not guarded."""
    bucket, _, key = resolve(uri)[1].partition("/")
    if not key:
        raise StorageError(f"{uri} has no object name.", remedy=f"Write s3://{bucket}/name.", uri=uri)
    if not _honours_put_if_absent(uri.rpartition("/")[0], _endpoint()) and exists(uri):
        raise FileExistsError(uri)
    with explained(uri):
        _create_object(uri, data)


def _create_object(uri: str, data: bytes) -> None:
    """PUT with ``If-None-Match: *``; FileExistsError if the store refuses because the object exists."""
    system, path = resolve(uri)
    for attempt in range(CREATE_ATTEMPTS):
        try:
            _call(system, "pipe_file", path, data, mode="create")
            return
        except OSError as error:
            response = getattr(error.__cause__, "response", {})
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status == 412:  # some servers do not name the condition, which s3fs then reports as an invalid argument
                raise FileExistsError(uri) from error
            if status != 409 or attempt == CREATE_ATTEMPTS - 1:
                raise
            time.sleep(0.1 * 2**attempt)  # another write of this name is under way and may still fail


@functools.lru_cache(maxsize=64)
def _honours_put_if_absent(prefix: str, endpoint: str | None) -> bool:
    """Return whether this store refuses a second conditional PUT (some S3 servers ignore the header)."""
    probe = join(prefix, _temporary_name("cytoray-probe"))
    with explained(prefix):
        _create_object(probe, b"1")
        try:
            _create_object(probe, b"2")
        except FileExistsError:
            return True
        finally:
            delete(probe)
    logger.warning("%s ignores put-if-absent: run one writer at a time", endpoint or prefix)
    return False


def upload_folder(folder: Path, uri: str, *, last: str = "") -> None:
    """Copy every file below a local folder to a prefix; the file named ``last`` comes when all others are there."""
    for path in sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p == folder / last, p)):
        write_file(join(uri, path.relative_to(folder).as_posix()), path)


def download_folder(uri: str, folder: Path) -> None:
    """Copy every object below a prefix into a local folder, which appears only once it is complete."""
    objects = list_objects(uri)
    if not objects:
        raise NotFoundError(f"{uri}: no objects below this prefix.", remedy="Check the path.", uri=uri)
    partial = folder.with_name(_temporary_name(folder.name)).absolute()
    prefix = uri.rstrip("/") + "/" if is_remote(uri) else str(local_path(uri)) + "/"
    try:
        with explained(str(folder)):
            for entry in objects:
                target = _inside(partial, entry.uri.removeprefix(prefix), uri=entry.uri)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    file.writelines(_read_pieces(entry))
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_pieces(entry: ObjectInfo) -> Iterator[bytes]:
    """Yield an object's bytes, those of a large one by ranges, each of which has the whole deadline."""
    if entry.num_bytes <= COPY_BYTES:
        yield read_bytes(entry.uri)
        return
    for start in range(0, entry.num_bytes, COPY_BYTES):
        yield read_bytes(entry.uri, start=start, end=min(start + COPY_BYTES, entry.num_bytes))


def _inside(folder: Path, name: str, *, uri: str) -> Path:
    """Return ``folder/name``; StorageError if it leads out of the folder: S3 allows ``..`` in a key."""
    path = Path(os.path.normpath(folder / name))
    if folder not in path.parents:
        raise StorageError(f"{uri}: this name leads out of the folder.", remedy="Rename or delete it.", uri=uri)
    return path


def delete(uri: str) -> None:
    """Remove one object; a missing one is not an error."""
    system, path = resolve(uri)
    with explained(uri), contextlib.suppress(FileNotFoundError):
        _call(system, "rm_file", path)


def delete_prefix(uri: str) -> None:
    """Remove every object below a prefix (and the local folder); a missing prefix is not an error."""
    system, path = resolve(uri)
    with explained(uri):
        if is_remote(uri):
            # One DELETE each: some servers refuse the batch form without Content-MD5.
            for name in _call(system, "find", path):
                _call(system, "rm_file", name)
        else:
            shutil.rmtree(path, ignore_errors=True)
