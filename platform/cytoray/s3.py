"""The S3 client: endpoint and time limits from the environment, and calls that end by a deadline."""

from __future__ import annotations

import functools
import os
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError

from cytoray.errors import StorageError


def find_endpoint() -> str | None:
    """The S3 endpoint that the environment names; None is Amazon's."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise StorageError(f"The S3 endpoint {endpoint!r} is no URL.", remedy="Write it as http://host:port.")
    return endpoint


@functools.lru_cache(maxsize=16)
def build_client(endpoint: str | None, pid: int) -> fsspec.AbstractFileSystem:
    """One S3 client per endpoint and process (``pid`` is in the key because clients do not survive a fork)."""
    client = {"endpoint_url": endpoint} if endpoint else {}
    # Path-style addresses: bucket.localhost resolves nowhere, and every S3 server understands them.
    config: dict[str, Any] = {"s3": {"addressing_style": "path"}} if endpoint else {}
    silence_s = _seconds("CYTORAY_S3_TIMEOUT_S", 15)
    config |= {"read_timeout": silence_s, "connect_timeout": min(silence_s, 5)}
    return fsspec.filesystem(
        "s3", client_kwargs=client, config_kwargs=config, use_listings_cache=False, skip_instance_cache=True
    )


def _seconds(variable: str, default: float) -> float:
    """A time limit from the environment."""
    text = os.environ.get(variable) or str(default)
    if not text.replace(".", "", 1).isdecimal() or float(text) == 0:
        raise StorageError(f"{variable} is {text!r}.", remedy="Set it to a number of seconds above zero, or unset it.")
    return float(text)


def call(system: fsspec.AbstractFileSystem, method: str, *args: Any, **options: Any) -> Any:
    """Call a method of a file system, of a remote one for so long as the deadline allows, retries included."""
    if not isinstance(system, AsyncFileSystem):
        return getattr(system, method)(*args, **options)
    deadline_s = _seconds("CYTORAY_S3_DEADLINE_S", 300)
    try:
        return sync(system.loop, getattr(system, f"_{method}"), *args, timeout=deadline_s, **options)
    except FSTimeoutError as error:
        raise TimeoutError(f"no whole answer within {deadline_s:g} s") from error
