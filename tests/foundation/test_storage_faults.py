"""S3 that refuses, lies, drops or is not there at all: each a StorageError with a remedy, never a wrong result."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from cytoray import storage
from cytoray.errors import ConflictError, NotFoundError, StorageError
from cytoray.s3 import build_client

from .conftest import Proxy, Reply, Request, Store

CALLS = {
    "read": storage.read_bytes,
    "info": storage.info,
    "exists": storage.exists,
    "list": storage.list_files,
    "open": storage.open_read,
    "write": lambda uri: storage.write_bytes(uri, b"x"),
    "put": lambda uri: storage.put_if_absent(uri, b"x"),
    "delete": storage.delete,
    "delete_prefix": storage.delete_prefix,
}
XML = "<?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"


def refusal(status: int, code: str) -> Reply:
    return Reply(status, XML.format(code, "Refused.").encode(), {"Content-Type": "application/xml"})


@pytest.mark.parametrize("call", CALLS)
def test_refused_credentials_are_said_to_be_so(proxy: Proxy, s3_uri: str, call: str):
    proxy.change_request = lambda request: refusal(403, "SignatureDoesNotMatch")
    with pytest.raises(StorageError, match="access denied") as caught:
        CALLS[call](f"{s3_uri}/object")
    assert s3_uri in str(caught.value)
    assert proxy.endpoint in str(caught.value)
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy


def test_credentials_that_are_not_set_are_asked_for(proxy: Proxy, s3_uri: str, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    build_client.cache_clear()  # a client keeps the credentials of its start
    with pytest.raises(StorageError, match="access denied") as caught:
        storage.read_bytes(f"{s3_uri}/object")
    build_client.cache_clear()
    assert "AWS_ACCESS_KEY_ID" in caught.value.remedy
    assert proxy.requests == []


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("call", ["read", "put"])
def test_a_dead_endpoint_is_named_within_seconds(s3_uri: str, monkeypatch, call: str, variable: str):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv(variable, endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # five, the default, take 4 to 15 seconds
        started = time.monotonic()
        with pytest.raises(StorageError) as caught:
            CALLS[call](f"{s3_uri}/object")
    assert time.monotonic() - started < 10
    assert s3_uri in str(caught.value)
    assert f"(endpoint {endpoint})" in str(caught.value)
    assert "AWS_ENDPOINT_URL" in caught.value.remedy


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("endpoint", ["localhost:9000", "not a url"])
def test_an_endpoint_without_a_scheme_is_explained(s3_uri: str, monkeypatch, call: str, endpoint: str):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="is not a URL") as caught:
        CALLS[call](f"{s3_uri}/object")
    assert endpoint in str(caught.value)
    assert "http://host:port" in caught.value.remedy


@pytest.mark.parametrize("call", CALLS)
def test_a_uri_without_a_bucket_is_explained(s3_uri: str, call: str):
    with pytest.raises(StorageError, match="has no bucket"):
        CALLS[call]("s3://")


@pytest.mark.parametrize("call", ["write", "put", "read"])
def test_a_uri_without_a_name_is_refused(s3_uri: str, tmp_path: Path, monkeypatch, call: str):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match="s3://cells"):
        CALLS[call]("s3://cells")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bucket_is_an_error_and_never_made(proxy: Proxy, tmp_path: Path):
    (tmp_path / "file").write_bytes(b"x")
    for write in (CALLS["write"], CALLS["put"], lambda uri: storage.upload_folder(tmp_path, uri)):
        with pytest.raises(NotFoundError, match="no-such-bucket") as caught:
            write("s3://no-such-bucket/object")
        assert "bucket" in caught.value.remedy
    asked = [(request.method, request.path.partition("?")[0].strip("/")) for request in proxy.requests]
    assert len(asked) >= 3
    assert ("PUT", "no-such-bucket") not in asked
    assert [path for method, path in asked if method == "PUT"].count("no-such-bucket/object") >= 1


def test_only_the_range_asked_for_is_fetched(proxy: Proxy, moto_store: Store):
    moto_store.put("large", os.urandom(2**20))
    uri = f"{moto_store.uri}/large"
    storage.read_bytes(uri, start=100, end=200)
    with storage.open_read(uri) as file:
        file.seek(2**20 - 10)
        file.read(10)
    gets = [request for request in proxy.requests if request.method == "GET"]
    assert [request.headers.get("Range") for request in gets] == ["bytes=100-199", "bytes=1048566-1048575"]


def test_a_flip_on_the_wire_is_read_again(proxy: Proxy, moto_store: Store):
    moto_store.put("shard", b"cells")
    flips = [b"celLs"]

    def flip_once(request: Request, reply: Reply) -> Reply:
        if request.method == "GET" and flips:
            reply.headers = {}  # the checksum header too: no client could see this flip
            reply.body = flips.pop()
        return reply

    proxy.change_reply = flip_once
    digest = hashlib.sha256(b"cells").hexdigest()
    assert storage.read_bytes(f"{moto_store.uri}/shard", sha256=digest) == b"cells"
    assert flips == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_reply_to_ones_own_put_is_no_conflict(proxy: Proxy, moto_store: Store, times: int):
    lost = [Reply(None)] * times

    def lose(request: Request, reply: Reply) -> Reply:
        return lost.pop() if request.method == "PUT" and request.path.endswith("/commit") and lost else reply

    proxy.change_reply = lose
    storage.put_if_absent(f"{moto_store.uri}/commit", b"attempt 1")
    assert lost == []
    assert moto_store.get("commit") == b"attempt 1"
    with pytest.raises(ConflictError):
        storage.put_if_absent(f"{moto_store.uri}/commit", b"attempt 2")


def test_a_store_that_ignores_the_condition_is_found_out(proxy: Proxy, moto_store: Store, caplog):
    def ignore(request: Request) -> None:
        request.headers.pop("If-None-Match", None)

    proxy.change_request = ignore
    with caplog.at_level(logging.WARNING, logger="cytoray.storage"):
        storage.put_if_absent(f"{moto_store.uri}/commit", b"first")
        with pytest.raises(ConflictError):
            storage.put_if_absent(f"{moto_store.uri}/commit", b"second")
        storage.put_if_absent(f"{moto_store.uri}/commit", b"first")
        storage.put_if_absent(f"{moto_store.uri}/other", b"first")
    assert moto_store.get("commit") == b"first"
    assert moto_store.keys() == ["commit", "other"]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert proxy.endpoint in warnings[0]
    assert "one writer at a time" in warnings[0]


def test_a_store_that_honours_the_condition_is_not_warned_about(moto_store: Store, caplog):
    with caplog.at_level(logging.WARNING, logger="cytoray.storage"):
        storage.put_if_absent(f"{moto_store.uri}/commit", b"first")
    assert caplog.records == []
    assert moto_store.keys() == ["commit"]


def test_a_refusal_that_does_not_name_its_condition_is_a_conflict(proxy: Proxy, moto_store: Store):
    # MinIO and Ceph answer so; Amazon and moto add <Condition>If-None-Match</Condition>.
    proxy.change_reply = lambda request, reply: refusal(412, "PreconditionFailed") if reply.status == 412 else reply
    storage.put_if_absent(f"{moto_store.uri}/commit", b"first")
    storage.put_if_absent(f"{moto_store.uri}/commit", b"first")
    with pytest.raises(ConflictError):
        storage.put_if_absent(f"{moto_store.uri}/commit", b"second")
    assert moto_store.get("commit") == b"first"


@pytest.mark.parametrize("num_busy", [1, 100])
def test_a_put_under_way_by_another_is_waited_for(proxy: Proxy, moto_store: Store, monkeypatch, num_busy: int):
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)
    busy = [refusal(409, "ConditionalRequestConflict")] * num_busy

    def conflict(request: Request) -> Reply | None:
        return busy.pop() if request.path.endswith("/commit") and busy else None

    proxy.change_request = conflict
    if num_busy == 1:
        storage.put_if_absent(f"{moto_store.uri}/commit", b"mine")
        assert moto_store.get("commit") == b"mine"
    else:
        with pytest.raises(StorageError):
            storage.put_if_absent(f"{moto_store.uri}/commit", b"mine")


def test_half_a_download_is_not_shown(proxy: Proxy, moto_store: Store, tmp_path: Path):
    for name in "abc":
        moto_store.put(f"bundle/{name}", b"x")
    denied = refusal(403, "AccessDenied")
    proxy.change_request = lambda request: denied if request.path.endswith("/b") else None
    with pytest.raises(StorageError, match="access denied"):
        storage.download_folder(f"{moto_store.uri}/bundle", tmp_path / "down")
    assert any(request.path.endswith("/a") for request in proxy.requests)
    assert list(tmp_path.iterdir()) == []


def test_the_folder_objects_of_consoles_are_no_files(moto_store: Store, tmp_path: Path):
    for name in ("bundle/", "bundle/deep/", "bundle/deep/a"):
        moto_store.put(name, b"")
    assert storage.list_files(f"{moto_store.uri}/bundle") == [f"{moto_store.uri}/bundle/deep/a"]
    storage.download_folder(f"{moto_store.uri}/bundle", tmp_path / "down")
    assert [path.name for path in (tmp_path / "down" / "deep").iterdir()] == ["a"]
    storage.delete_prefix(f"{moto_store.uri}/bundle")
    assert moto_store.keys() == []


@pytest.mark.parametrize("key", ["bundle/../../escaped", "bundle//{folder}/escaped", "bundle/deep/../../../escaped"])
def test_a_name_that_leads_out_of_the_folder_is_refused(moto_store: Store, tmp_path: Path, key: str):
    moto_store.put(key.format(folder=tmp_path), b"evil")
    moto_store.put("bundle/z", b"x")
    (tmp_path / "in").mkdir()
    with pytest.raises(StorageError, match="leads out of the folder"):
        storage.download_folder(f"{moto_store.uri}/bundle", tmp_path / "in" / "down")
    assert [path.name for path in tmp_path.rglob("*")] == ["in"]


@pytest.mark.parametrize("wrong", ["soon", "0", "-1"])
@pytest.mark.parametrize("variable", ["CYTORAY_S3_TIMEOUT_S", "CYTORAY_S3_DEADLINE_S"])
def test_a_time_limit_that_is_none_is_explained(moto_store: Store, monkeypatch, variable: str, wrong: str):
    monkeypatch.setenv(variable, wrong)
    build_client.cache_clear()
    with pytest.raises(StorageError, match=variable) as caught:
        storage.read_bytes(f"{moto_store.uri}/object")
    build_client.cache_clear()
    assert "seconds" in caught.value.remedy


def test_a_server_that_falls_silent_is_given_up_at_the_deadline(proxy: Proxy, moto_store: Store, monkeypatch):
    moto_store.put("object", b"x")
    monkeypatch.setenv("CYTORAY_S3_DEADLINE_S", "1")
    released = threading.Event()

    def hang(request: Request) -> None:
        released.wait(30)

    proxy.change_request = hang
    started = time.monotonic()
    try:
        with pytest.raises(StorageError, match="no complete answer within 1 s"):
            storage.read_bytes(f"{moto_store.uri}/object")
    finally:
        released.set()
    assert time.monotonic() - started < 10
