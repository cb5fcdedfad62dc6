"""Checks of the store: reached, how fast, writable, put-if-absent, clock. Buckets are never created."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytoray import storage
from cytoray.operations.doctor.clocks import check_clock
from cytoray.operations.doctor.findings import Finding, fail, ok, warn
from cytoray.s3 import find_endpoint

CONNECT_S, READ_S = 3.0, 4.0
NUM_PINGS = 5
SLOW_S = 0.25  # for one request; a shard takes several
CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role."
POLICY = "The policy must allow s3:ListBucket, GetObject, PutObject and DeleteObject on the store."


def check_store(store: str) -> Iterator[Finding]:
    """Check a store: an s3:// prefix or a local folder."""
    if store.startswith("s3://"):
        yield from _check_s3(store)
    else:
        yield check_folder(storage.local_path(store), "store.write")


def check_folder(path: Path, name: str) -> Finding:
    """Write and remove a probe in a local folder, or in the nearest folder above it that exists."""
    folder = next(each for each in (path, *path.parents) if each.is_dir())
    probe = folder / f".cytoray-doctor-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_bytes(bytes(4096))
    except OSError as error:
        remedy = (
            f"Free space on the disk of {folder}." if "space" in str(error) else f"Check the permissions of {folder}."
        )
        return fail(name, f"{path}: cannot be written ({error.strerror})", remedy=remedy)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return ok(name, f"{path} can be written")


def _check_s3(store: str) -> Iterator[Finding]:
    """Check a prefix of a bucket, request by request."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = store.removeprefix("s3://").partition("/")
    probe = _Probe(
        build_s3_client(), bucket, f"{prefix.rstrip('/')}/".lstrip("/") + f".cytoray-doctor-{uuid.uuid4().hex}"
    )
    step = "store.reach"
    try:
        date = probe.reach()
        yield ok(step, f"bucket {bucket} at {_where()} answers")
        if (clock := check_clock("store.clock", date, whose="the store")) is not None:
            yield clock
        step = "store.write"
        probe.write(condition=True)
        try:
            yield ok(step, f"{store} can be written")
            step = "store.latency"
            yield _latency(probe)
            step = "store.conditional_write"
            yield _conditional(probe)
        finally:
            probe.delete()
    except (BotoCoreError, ClientError) as error:
        yield _explain(step, error, bucket=bucket)


def build_s3_client() -> Any:
    """Return an S3 client that answers within seconds: no retries, short time limits."""
    import boto3
    from botocore.config import Config

    style = {"addressing_style": "path"} if find_endpoint() else {}
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=READ_S,
        retries={"total_max_attempts": 1},
        s3=style,
        region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
    )
    return boto3.session.Session().client("s3", endpoint_url=find_endpoint(), config=config)


@dataclass(frozen=True)
class _Probe:
    """One object of our own below the store."""

    client: Any
    bucket: str
    key: str

    def reach(self) -> str:
        """List one key; returns the Date header."""
        answer = self.client.list_objects_v2(Bucket=self.bucket, MaxKeys=1, Prefix=self.key)
        return str(answer["ResponseMetadata"]["HTTPHeaders"].get("date", ""))

    def write(self, *, condition: bool) -> None:
        """Put the object, only if it is absent with ``condition``."""
        self.client.put_object(
            Bucket=self.bucket, Key=self.key, Body=b"1", **({"IfNoneMatch": "*"} if condition else {})
        )

    def read(self) -> bytes:
        """Get the object."""
        return bytes(self.client.get_object(Bucket=self.bucket, Key=self.key)["Body"].read())

    def delete(self) -> None:
        """Delete the object."""
        self.client.delete_object(Bucket=self.bucket, Key=self.key)


def _latency(probe: _Probe) -> Finding:
    """Time some reads of a byte."""
    times = []
    for _ in range(NUM_PINGS):
        started = time.perf_counter()
        probe.read()
        times.append(time.perf_counter() - started)
    median = statistics.median(times)
    seen = f"{median * 1000:.0f} ms per read of one byte (median of {NUM_PINGS})"
    if median > SLOW_S:
        return warn("store.latency", seen, remedy="Run in the region of the store, or look for a proxy in between.")
    return ok("store.latency", seen)


def _conditional(probe: _Probe) -> Finding:
    """Put the object that exists if it is absent: a store that accepts it ignores the condition."""
    from botocore.exceptions import ClientError

    try:
        probe.write(condition=True)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412):
            return ok("store.conditional_write", "a second put-if-absent is refused")
        raise
    return warn(
        "store.conditional_write",
        "this store ignores put-if-absent (If-None-Match)",
        remedy="Run one writer at a time, or use a store with conditional writes (Amazon S3, recent MinIO, moto).",
    )


def _where() -> str:
    return find_endpoint() or "Amazon S3"


def _explain(step: str, error: Any, *, bucket: str) -> Finding:
    """Name what went wrong with a request, and the remedy."""
    response = getattr(error, "response", None) or {}
    code = str(response.get("Error", {}).get("Code", type(error).__name__))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    seen = f"{_where()}, bucket {bucket}: {code}" + (f" (HTTP {status})" if status else "")
    if code in ("NoSuchBucket", "404"):
        remedy = "Create the bucket, or correct --store; cytoray never creates buckets."
    elif code == "RequestTimeTooSkewed":
        return fail(
            "store.clock", seen, remedy="Synchronise the clock of this machine: it is more than 15 minutes off."
        )
    elif code in (
        "NoCredentialsError",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "ExpiredToken",
        "PartialCredentialsError",
    ):
        remedy = CREDENTIALS
    elif code in ("AccessDenied", "403"):
        remedy = POLICY
    elif status is not None and status >= 500:
        remedy = "The store is overloaded or broken: try again, and look at its own logs."
    else:
        remedy = "Check AWS_ENDPOINT_URL, the network, proxies and security groups."
    return fail(step, seen, remedy=remedy)
