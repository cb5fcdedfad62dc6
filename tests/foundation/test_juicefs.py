"""A second S3 implementation: real signatures, and conditional writes that are taken but not honoured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest

from cytoray import storage
from cytoray.errors import ConflictError, NotFoundError, StorageError
from cytoray.s3 import build_client

from .conftest import s3_store

pytestmark = pytest.mark.juicefs


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_and_explained(juicefs_uri: str, monkeypatch, variable: str):
    monkeypatch.setenv(variable, "wrong")
    build_client.cache_clear()  # a client keeps the credentials of its start
    for call in (storage.read_bytes, storage.list_files, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(StorageError, match="access denied") as caught:
            call(f"{juicefs_uri}/object")
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy
    build_client.cache_clear()


def test_put_if_absent_refuses_an_existing_name_and_says_that_races_are_not_guarded(juicefs_uri: str, caplog):
    store = s3_store(juicefs_uri)
    storage.put_if_absent(f"{juicefs_uri}/commit", b"first")
    with pytest.raises(ConflictError):
        storage.put_if_absent(f"{juicefs_uri}/commit", b"second")
    assert store.get("commit") == b"first"
    assert store.keys() == ["commit"]
    assert "ignores put-if-absent" in caplog.text


def test_a_missing_bucket_is_not_made(juicefs_uri: str):
    for _ in range(2):
        with pytest.raises(NotFoundError):
            storage.write_bytes("s3://absent-bucket/object", b"x")
    buckets = boto3.client("s3").list_buckets()["Buckets"]
    assert [bucket["Name"] for bucket in buckets] == ["cells"]


def test_more_files_than_one_page_are_listed(juicefs_uri: str):
    names = [f"{juicefs_uri}/{number // 100:02d}/{number}" for number in range(1005)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(name, b"x"), names))
    assert storage.list_files(juicefs_uri) == sorted(names)
