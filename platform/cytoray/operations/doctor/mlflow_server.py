"""Checks of MLflow: reached, credentials, artifact root writable; by plain HTTP, as its client retries for minutes."""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from cytoray.operations.doctor.findings import Finding, fail, ok, warn
from cytoray.operations.doctor.store import _explain, build_s3_client, check_folder
from cytoray.tracking.server import public

TIMEOUT_S = 4.0
API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_SQLITE = "sqlite:///"


def check_mlflow(uri: str) -> Iterator[Finding]:
    """Check the MLflow at ``uri``: a server, or a database."""
    if uri.startswith(("http://", "https://")):
        yield from _check_server(uri.rstrip("/"))
    elif uri.startswith(_SQLITE):
        yield _check_sqlite(Path(uri.removeprefix(_SQLITE)))
    else:
        yield _check_port(uri)


def _client(uri: str) -> httpx.Client:
    """Return a client with the credentials that MLflow itself would use."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token and not user else {}
    auth = (user, password or "") if user else None
    return httpx.Client(base_url=uri, headers=headers, auth=auth, timeout=TIMEOUT_S)


def _check_server(uri: str) -> Iterator[Finding]:
    """Ask a server for an experiment, then write below its artifact root."""
    where, step = public(uri), "mlflow.reach"
    with _client(uri) as client:
        try:
            answer = client.get(f"{API}/experiments/search", params={"max_results": 1})
            finding = _judge(answer, where)
            yield finding
            if finding.outcome != "ok":
                return
            step = "mlflow.artifacts"
            yield _check_artifacts(client, answer.json().get("experiments") or [{}], where)
        except httpx.TransportError as error:
            yield fail(
                step,
                f"{where}: {error or type(error).__name__}",
                remedy="Check that the server runs, the URI, and that the network lets this machine reach it.",
            )


def _judge(answer: httpx.Response, where: str) -> Finding:
    """Return what the first answer of a server means."""
    if answer.status_code in (401, 403):
        return fail(
            "mlflow.auth",
            f"{where} rejected the credentials (HTTP {answer.status_code})",
            remedy="Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
        )
    if answer.status_code >= 500:
        return fail(
            "mlflow.reach",
            f"{where}: HTTP {answer.status_code}",
            remedy="The server runs without its database: look at its logs and at the database.",
        )
    if answer.status_code >= 400 or "json" not in answer.headers.get("content-type", ""):
        return fail(
            "mlflow.reach",
            f"{where} is not MLflow (HTTP {answer.status_code})",
            remedy="Name the root of an MLflow tracking server, such as http://mlflow.example:5000.",
        )
    return ok("mlflow.reach", f"{where} answers in {answer.elapsed.total_seconds() * 1000:.0f} ms")


def _check_artifacts(client: httpx.Client, experiments: list[dict[str, Any]], where: str) -> Finding:
    """Write and remove a probe below the artifact root of the first experiment."""
    root = str(experiments[0].get("artifact_location", ""))
    if root.startswith("mlflow-artifacts:"):
        return _check_proxied(client, root)
    if root.startswith("s3://"):
        return _check_bucket(root)
    if not root:
        return warn("mlflow.artifacts", "no experiment to look at", remedy="Run any stage once, then check again.")
    if urlsplit(where).hostname in ("127.0.0.1", "localhost"):
        path = Path(unquote(urlsplit(root).path) if root.startswith("file:") else root)
        return check_folder(path, "mlflow.artifacts")
    return fail(
        "mlflow.artifacts",
        f"artifact root {root} is a folder of the server, which other machines cannot write",
        remedy="Start the server with --serve-artifacts --artifacts-destination s3://bucket/prefix.",
    )


def _check_proxied(client: httpx.Client, root: str) -> Finding:
    """Write through the server."""
    name = f"cytoray-doctor-{uuid.uuid4().hex}"
    answer = client.put(f"{ARTIFACTS}/{name}/probe", content=b"1")
    if answer.status_code >= 400:
        return fail(
            "mlflow.artifacts",
            f"artifact root {root}: the server cannot write there (HTTP {answer.status_code})",
            remedy="Give the server credentials for its --artifacts-destination, and space there.",
        )
    client.delete(f"{ARTIFACTS}/{name}/probe")
    return ok("mlflow.artifacts", f"artifact root {root} can be written through the server")


def _check_bucket(root: str) -> Finding:
    """Write into the bucket, as clients of this server do."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    key = f"{prefix.rstrip('/')}/".lstrip("/") + f".cytoray-doctor-{uuid.uuid4().hex}"
    try:
        client = build_s3_client()
        client.put_object(Bucket=bucket, Key=key, Body=b"1")
        client.delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        return _explain("mlflow.artifacts", error, bucket=bucket)
    return ok("mlflow.artifacts", f"artifact root {root} can be written")


def _check_sqlite(path: Path) -> Finding:
    """Open a database file for writing."""
    name = "mlflow.reach"
    if not path.exists():
        return check_folder(path, name)
    try:
        with closing(sqlite3.connect(path, timeout=1)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return fail(name, f"{path}: {error}", remedy="End the process that holds it, or name another sqlite:/// file.")
    return ok(name, f"{path} can be written")


def _check_port(uri: str) -> Finding:
    """Connect to the port of a database server."""
    import socket

    parts, name = urlsplit(uri), "mlflow.reach"
    port = parts.port or {"postgresql": 5432, "mysql": 3306}.get(parts.scheme.partition("+")[0], 0)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=TIMEOUT_S).close()
    except OSError as error:
        return fail(
            name, f"{public(uri)}: {error}", remedy="Check that the database runs and can be reached from here."
        )
    return ok(name, f"{public(uri)} accepts connections")
