"""Stores of files: which one a URI names, and the clients' exceptions as errors that name object and remedy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cytoray.errors import NotFoundError, StorageError
from cytoray.s3 import build_client, find_endpoint


def is_remote(uri: str) -> bool:
    """Return whether ``uri`` names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """Return the local path of a plain path or ``file://`` URI."""
    assert not is_remote(uri), f"{uri} is not local"
    return Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri).expanduser().absolute()


def resolve(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI and the path inside it."""
    if uri.startswith("s3://"):
        path = uri.removeprefix("s3://")
        if not path.strip("/"):
            raise StorageError(f"{uri} has no bucket.", remedy="Write s3://bucket/prefix.", uri=uri)
        return build_client(find_endpoint(), os.getpid()), path
    if is_remote(uri):
        scheme = uri.partition("://")[0]
        raise StorageError(f"{uri}: unknown kind of store {scheme!r}.", remedy="Use s3:// or a local path.", uri=uri)
    return fsspec.filesystem("file"), str(local_path(uri))


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Convert the clients' exceptions into StorageErrors that name the object and the remedy."""
    endpoint = find_endpoint() if is_remote(uri) else None
    where = f"{uri} (endpoint {endpoint})" if endpoint else uri
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
        problem, remedy = "cannot be read or written", "Check this path and the space left on its disk."
        if is_remote(uri):
            problem = "the request to the store failed"
            remedy = "Check that the store is up and that AWS_ENDPOINT_URL names it."
        raise StorageError(f"{where}: {problem} ({error}).", remedy=remedy, uri=uri) from error
