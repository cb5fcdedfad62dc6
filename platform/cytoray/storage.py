"""The one door to ``s3://`` and local paths: reads by range, atomic writes, put-if-absent, digests, clear errors.

Endpoint, region and credentials come from the standard ``AWS_*`` variables (``AWS_ENDPOINT_URL`` for any other S3 than
Amazon's). Buckets are never created here. Only idempotent calls are retried (by s3fs, with back-off).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cytoray.errors import ConflictError, DigestError, NotFoundError, StorageError

logger = logging.getLogger(__name__)
READ_BLOCK_BYTES = 4 * 2**20  # one ranged GET; below ~4 MiB the request time dominates on S3


@dataclass(frozen=True)
class ObjectInfo:
    """What a store says of one object; ``version`` is the ETag on S3, size and mtime on a local disk."""

    uri: str
    num_bytes: int
    version: str


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The local path behind a plain path or ``file://`` URI."""
    assert not is_remote(uri), f"{uri} is not local"
    return Path(urlsplit(uri).path if uri.startswith("file://") else uri).expanduser().absolute()


def join(uri: str, *parts: str) -> str:
    """Append path parts to a URI or a local path."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


@functools.lru_cache(maxsize=16)
def _s3(endpoint: str | None, pid: int) -> fsspec.AbstractFileSystem:
    """One S3 client per endpoint and process (``pid`` is in the key because clients do not survive a fork)."""
    client = {"endpoint_url": endpoint} if endpoint else {}
    # Path-style addresses: bucket.localhost resolves nowhere, and every S3 server understands them.
    config = {"s3": {"addressing_style": "path"}} if endpoint else {}
    return fsspec.filesystem(
        "s3", client_kwargs=client, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True
    )


def _resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path inside it."""
    if uri.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return _s3(endpoint, os.getpid()), uri.removeprefix("s3://")
    if is_remote(uri):
        scheme = uri.partition("://")[0]
        raise StorageError(
            f"{uri}: no store of kind {scheme!r} is known.", remedy="Use s3:// or a local path.", uri=uri
        )
    return fsspec.filesystem("file"), str(local_path(uri))


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn what the clients raise into StorageErrors that name the object and the remedy."""
    where = f"{uri} (endpoint {os.environ['AWS_ENDPOINT_URL']})" if os.environ.get("AWS_ENDPOINT_URL") else uri
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{where}: there is no such object.", remedy="Check the path and the bucket.", uri=uri
        ) from error
    except (PermissionError, NoCredentialsError) as error:
        remedy = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the bucket's policy."
        if not is_remote(uri):
            remedy = "Check the permissions of this path."
        raise StorageError(f"{where}: access denied ({error}).", remedy=remedy, uri=uri) from error
    except (BotoCoreError, ClientError, TimeoutError, OSError) as error:
        if isinstance(error, FileExistsError):
            raise
        remedy = "Check that the store is up and that AWS_ENDPOINT_URL names it." if is_remote(uri) else ""
        raise StorageError(
            f"{where}: the store did not answer as it should ({error}).", remedy=remedy, uri=uri
        ) from error


def exists(uri: str) -> bool:
    """Whether an object (or a local file or folder) is there."""
    system, path = _resolve(uri)
    with _explained(uri):
        return bool(system.exists(path))


def info(uri: str) -> ObjectInfo:
    """Size and version of one object; NotFoundError if it is not there."""
    system, path = _resolve(uri)
    with _explained(uri):
        entry = system.info(path)
        if entry["type"] == "directory":
            raise StorageError(f"{uri} is a folder, not a file.", remedy="Name the file itself.", uri=uri)
    version = str(entry.get("ETag", "")).strip('"') or f"{entry['size']}-{entry['mtime']}"
    return ObjectInfo(uri, int(entry["size"]), version)


def list_files(uri: str) -> list[str]:
    """Every object below a prefix, sorted, as full URIs; an absent prefix is an empty list."""
    system, path = _resolve(uri)
    with _explained(uri):
        found = sorted(system.find(path))
    return [f"s3://{name}" for name in found] if is_remote(uri) else list(found)


def open_read(uri: str) -> BinaryIO:
    """A seekable binary file that fetches ranges as they are read."""
    system, path = _resolve(uri)
    with _explained(uri):
        return cast("BinaryIO", system.open(path, "rb", block_size=READ_BLOCK_BYTES, cache_type="readahead"))


def read_bytes(uri: str, *, start: int | None = None, end: int | None = None, sha256: str | None = None) -> bytes:
    """Read an object, or its bytes ``start`` to ``end``; with ``sha256`` given, verify them.

    A digest that differs is read once more before DigestError: the flip may have been on the wire.
    """
    system, path = _resolve(uri)
    for attempt in range(2):
        with _explained(uri):
            data = cast("bytes", system.cat_file(path, start=start, end=end))
        seen = hashlib.sha256(data).hexdigest()
        if sha256 is None or seen == sha256:
            return data
        logger.warning("%s: digest differs at attempt %d", uri, attempt + 1)
    raise DigestError(
        f"{uri}: the stored bytes have changed: expected SHA-256 {sha256}, seen {seen}.",
        remedy="Restore this object from a copy, or make it again from its source.",
        uri=uri,
        expected=sha256,
        seen=seen,
    )


def write_bytes(uri: str, data: bytes) -> str:
    """Write a whole object, visible only when complete; returns its SHA-256 (hex)."""
    system, path = _resolve(uri)
    with _explained(uri):
        if is_remote(uri):
            system.pipe_file(path, data)
        else:
            temporary = _write_temporary(Path(path), data)
            os.replace(temporary, path)
    return hashlib.sha256(data).hexdigest()


def put_if_absent(uri: str, data: bytes) -> str:
    """Write an object only if none has this name; returns its SHA-256 (hex), raises ConflictError if there is one.

    ``data`` should name its writer (an attempt id): if a lost reply makes our own write look like somebody else's,
    reading back the same bytes tells that it was ours.
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
            f"{uri}: somebody else has written this name first.", remedy="Use what is there, or another name.", uri=uri
        ) from error
    return digest


def _link_if_absent(uri: str, data: bytes) -> None:
    """Local put-if-absent: a hard link is atomic and fails if the name is taken, and the content is complete."""
    path = local_path(uri)
    with _explained(uri):
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)
        finally:
            temporary.unlink()


def _write_temporary(path: Path, data: bytes) -> Path:
    """Write and sync ``data`` under a temporary name beside ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _put_object_if_absent(uri: str, data: bytes) -> None:
    """Conditional PUT; on a store that ignores the condition, look first and say that races are not guarded."""
    system, path = _resolve(uri)
    if not _honours_put_if_absent(uri.rpartition("/")[0], os.environ.get("AWS_ENDPOINT_URL")) and exists(uri):
        raise FileExistsError(uri)
    with _explained(uri):
        system.pipe_file(path, data, mode="create")


@functools.lru_cache(maxsize=64)
def _honours_put_if_absent(prefix: str, endpoint: str | None) -> bool:
    """Whether this store refuses a second conditional PUT (some S3 servers take the header and ignore it)."""
    probe = join(prefix, f".cytoray-probe-{uuid.uuid4().hex}")
    system, path = _resolve(probe)
    with _explained(probe):
        system.pipe_file(path, b"1", mode="create")
        try:
            system.pipe_file(path, b"2", mode="create")
        except FileExistsError:
            return True
        finally:
            system.rm_file(path)
    logger.warning("%s ignores put-if-absent: run one writer at a time", endpoint or prefix)
    return False


def upload_folder(folder: Path, uri: str) -> None:
    """Copy every file below a local folder to a prefix."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        write_bytes(join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


def download_folder(uri: str, folder: Path) -> None:
    """Copy every object below a prefix into a local folder, which appears only when it is complete."""
    names = list_files(uri)
    if not names:
        raise NotFoundError(f"{uri}: there is nothing below this prefix.", remedy="Check the path.", uri=uri)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    prefix = uri.rstrip("/") + "/" if is_remote(uri) else str(local_path(uri)) + "/"
    try:
        for name in names:
            target = partial / name.removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(read_bytes(name))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def delete(uri: str) -> None:
    """Remove one object; an absent one is no error."""
    system, path = _resolve(uri)
    with _explained(uri), contextlib.suppress(FileNotFoundError):
        system.rm_file(path)


def delete_prefix(uri: str) -> None:
    """Remove every object below a prefix (and the local folder); an absent prefix is no error."""
    system, path = _resolve(uri)
    with _explained(uri):
        if is_remote(uri):
            for name in system.find(path):
                system.rm_file(name)  # one DELETE each: some servers refuse the batch form without Content-MD5
        else:
            shutil.rmtree(path, ignore_errors=True)
