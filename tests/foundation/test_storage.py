"""What every store must do alike: a local folder, moto, and (marked) the JuiceFS gateway."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from cytoray import storage
from cytoray.errors import ConflictError, DigestError, NotFoundError, StorageError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("data", [b"", b"cells", random.Random(0).randbytes(300_000)])
def test_what_is_written_comes_back(store, data: bytes):
    uri = storage.join(store.uri, "deep/er", "object")
    assert storage.write_digested(uri, b"older") == sha256(b"older")
    assert storage.write_digested(uri, data) == sha256(data)
    assert store.get("deep/er/object") == data
    assert storage.read_bytes(uri) == data
    assert storage.read_bytes(uri, sha256=sha256(data)) == data
    assert storage.exists(uri)
    assert storage.info(uri).num_bytes == len(data)
    assert store.keys() == ["deep/er/object"]


def test_awkward_names_are_written_listed_read_and_deleted(store):
    names = ["a b.txt", "c#d", "100%25", "plus+plus", "zelle_é_細胞", "[x]*"]
    for name in names:
        storage.write_bytes(storage.join(store.uri, name), name.encode())
    assert store.keys() == sorted(names)
    listed = storage.list_files(store.uri)
    assert [storage.read_bytes(uri).decode() for uri in listed] == sorted(names)
    storage.delete(storage.join(store.uri, "[x]*"))
    assert store.keys() == sorted(set(names) - {"[x]*"})


@pytest.mark.parametrize(
    ("start", "end"), [(0, 3), (2, 5), (5, None), (None, 4), (-3, None), (8, 50), (3, 3), (0, 10), (9, 10)]
)
def test_a_range_is_a_slice(store, start: int | None, end: int | None):
    store.put("digits", b"0123456789")
    assert storage.read_bytes(storage.join(store.uri, "digits"), start=start, end=end) == b"0123456789"[start:end]


def test_an_open_file_seeks_over_many_blocks(store):
    data = random.Random(1).randbytes(2 * storage.READ_BLOCK_BYTES + 12_345)
    store.put("large", data)
    with storage.open_read(storage.join(store.uri, "large")) as file:
        for place, size in [
            (0, 8),
            (len(data) - 9, 9),
            (storage.READ_BLOCK_BYTES - 5, 10),
            (77, storage.READ_BLOCK_BYTES),
        ]:
            assert file.seek(place) == place
            assert file.read(size) == data[place : place + size]
        assert file.seek(-4, os.SEEK_END) == len(data) - 4
        assert file.read() == data[-4:]


@pytest.mark.parametrize("bad", [b"celLs", b"", b"cells and more"])
def test_changed_bytes_are_refused_by_name(store, bad: bytes):
    uri = storage.join(store.uri, "shard")
    good = storage.write_digested(uri, b"cells")
    store.put("shard", bad)
    with pytest.raises(DigestError) as caught:
        storage.read_bytes(uri, sha256=good)
    assert caught.value.details == {"uri": uri, "expected": good, "seen": sha256(bad)}
    assert all(fact in str(caught.value) for fact in (uri, good, sha256(bad)))
    assert caught.value.remedy


def test_the_digest_of_a_range_is_that_of_the_range(store):
    store.put("digits", b"0123456789")
    uri = storage.join(store.uri, "digits")
    assert storage.read_bytes(uri, start=2, end=5, sha256=sha256(b"234")) == b"234"
    with pytest.raises(DigestError):
        storage.read_bytes(uri, start=2, end=6, sha256=sha256(b"234"))


def test_a_reader_never_sees_half_a_write(store):
    uri, size, done = storage.join(store.uri, "object"), 200_000, Event()
    storage.write_bytes(uri, b"0" * size)

    def write() -> None:
        for number in range(30):
            storage.write_bytes(uri, str(number % 10).encode() * size)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        num_reads = 0
        while not done.is_set() and not writing.done():
            data = storage.read_bytes(uri)
            assert len(data) == size
            assert len(set(data)) == 1
            num_reads += 1
        writing.result()
    assert num_reads > 1
    assert store.keys() == ["object"]


def test_of_sixteen_writers_of_one_name_one_wins(guarded_store):
    for number in range(3):
        uri, start = storage.join(guarded_store.uri, f"commit-{number}"), Barrier(16)

        def write(writer: int, uri: str = uri, start: Barrier = start) -> bytes | None:
            start.wait()
            try:
                storage.put_if_absent(uri, f"writer {writer}".encode())
            except ConflictError:
                return None
            return f"writer {writer}".encode()

        with ThreadPoolExecutor(16) as pool:
            winners = [data for data in pool.map(write, range(16)) if data is not None]
        assert winners == [guarded_store.get(f"commit-{number}")]
    assert guarded_store.keys() == ["commit-0", "commit-1", "commit-2"]


def test_a_taken_name_is_kept_unless_the_bytes_are_ones_own(store):
    uri = storage.join(store.uri, "commit")
    assert storage.put_if_absent(uri, b"mine") == sha256(b"mine")
    assert storage.put_if_absent(uri, b"mine") == sha256(b"mine")
    with pytest.raises(ConflictError) as caught:
        storage.put_if_absent(uri, b"theirs")
    assert uri in str(caught.value)
    assert caught.value.details == {"uri": uri}
    assert store.get("commit") == b"mine"
    assert store.keys() == ["commit"]


def test_more_files_than_one_page_are_listed(s3_uri: str):
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    names = [f"{prefix}/{number // 100:02d}/{number}" for number in range(1005)]
    for name in names:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket, name, b"")  # a tenth of the time of a request
    assert storage.list_files(s3_uri) == sorted(f"s3://{bucket}/{name}" for name in names)


def test_a_prefix_ends_at_a_slash(store):
    for name in ("run1/a", "run1/b/c", "run10/a", "run"):
        store.put(name, b"x")
    for suffix in ("", "/"):
        listed = storage.list_files(storage.join(store.uri, "run1") + suffix)
        assert listed == [f"{store.uri}/run1/a", f"{store.uri}/run1/b/c"]
    assert storage.list_files(f"{store.uri}/run1/a") == [f"{store.uri}/run1/a"]
    assert storage.list_files(f"{store.uri}/nothing") == []
    storage.delete_prefix(f"{store.uri}/run1")
    assert store.keys() == ["run", "run10/a"]
    storage.delete_prefix(f"{store.uri}/nothing")


@pytest.mark.parametrize("read", [storage.read_bytes, storage.info, storage.open_read])
def test_what_is_absent_is_named(store, read):
    uri = storage.join(store.uri, "nothing")
    assert not storage.exists(uri)
    storage.delete(uri)
    with pytest.raises(NotFoundError) as caught:
        read(uri)
    assert uri in str(caught.value)
    assert caught.value.details == {"uri": uri}
    assert caught.value.remedy


def test_deleted_is_gone(store):
    for name in ("a", "b"):
        store.put(name, b"x")
    storage.delete(f"{store.uri}/a")
    assert store.keys() == ["b"]


def test_the_version_of_an_object_changes_with_its_content(store):
    uri = storage.join(store.uri, "object")
    storage.write_bytes(uri, b"one")
    first = storage.info(uri)
    assert storage.info(uri) == first
    storage.write_bytes(uri, b"two")
    assert storage.info(uri).version != first.version
    with pytest.raises(StorageError, match="is a folder"):
        storage.info(store.uri)


def test_folders_go_up_and_come_down_whole(store, tmp_path: Path):
    files = {"config.json": b"{}", "weights/a.bin": b"\0\1", "weights/deep/b.bin": b""}
    for name, data in files.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(data)
    storage.upload_folder(tmp_path / "up", f"{store.uri}/bundle")
    assert store.keys() == sorted(f"bundle/{name}" for name in files)
    for suffix in ("", "/"):
        down = tmp_path / f"down{len(suffix)}"
        storage.download_folder(f"{store.uri}/bundle{suffix}", down)
        assert {path.relative_to(down).as_posix(): path.read_bytes() for path in down.rglob("*.*")} == files


def test_large_files_are_copied_piece_by_piece(store, tmp_path: Path, monkeypatch):
    data = os.urandom(1_000_003)
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "index").write_bytes(data)
    monkeypatch.setattr(storage, "COPY_BYTES", 2**16)
    storage.upload_folder(tmp_path / "up", f"{store.uri}/bundle")
    assert store.get("bundle/index") == data
    storage.download_folder(f"{store.uri}/bundle", tmp_path / "down")
    assert (tmp_path / "down" / "index").read_bytes() == data


def test_the_last_file_of_an_upload_is_written_when_all_others_are_there(tmp_path: Path):
    (tmp_path / "up").mkdir()
    for name in "abc":
        (tmp_path / "up" / name).write_bytes(b"1")
    (tmp_path / "store" / "c").mkdir(parents=True)  # so that c cannot be written
    with pytest.raises(StorageError, match="store/c"):
        storage.upload_folder(tmp_path / "up", str(tmp_path / "store"), last="a")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["b", "c"]


def test_a_download_never_mixes_with_what_is_there(store, tmp_path: Path):
    store.put("bundle/a", b"new")
    (tmp_path / "down").mkdir()
    (tmp_path / "down" / "old").write_bytes(b"old")
    with pytest.raises(StorageError, match="down"):
        storage.download_folder(f"{store.uri}/bundle", tmp_path / "down")
    with pytest.raises(NotFoundError, match="no objects below"):
        storage.download_folder(f"{store.uri}/absent", tmp_path / "other")
    beside = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if "store" not in path.parts}
    assert beside == {"down", "down/old"}


# A local folder by itself


def test_a_writer_that_dies_leaves_the_old_bytes_and_nothing_in_listings(tmp_path: Path):
    uri = str(tmp_path / "store" / "object")
    storage.write_bytes(uri, b"old")
    die = "os.replace = os.link = lambda *names: os.kill(os.getpid(), 9)"
    for write in ("write_bytes", "put_if_absent"):
        code = f"import os, sys\nfrom cytoray import storage\n{die}\nstorage.{write}(sys.argv[1], b'new')"
        finished = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, timeout=280)
        assert finished.returncode == -signal.SIGKILL, finished.stderr
    assert len(list((tmp_path / "store").iterdir())) == 3, "the writers died too early for this test"
    assert storage.read_bytes(uri) == b"old"
    assert storage.list_files(str(tmp_path / "store")) == [uri]
    storage.download_folder(str(tmp_path / "store"), tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["object"]


@pytest.mark.parametrize("write", [storage.write_bytes, storage.put_if_absent])
def test_a_full_disk_is_explained_and_leaves_nothing(tmp_path: Path, monkeypatch, write):
    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="No space left") as caught:
        write(str(tmp_path / "object"), b"data")
    assert "space" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [storage.write_bytes, storage.put_if_absent])
@pytest.mark.parametrize("name", ["file/below", "folder"])
def test_a_path_that_cannot_be_a_file_is_explained(tmp_path: Path, write, name: str):
    (tmp_path / "file").write_bytes(b"kept")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError) as caught:
        write(str(tmp_path / name), b"data")
    assert not isinstance(caught.value, ConflictError)
    assert str(tmp_path / name) in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_local_paths_are_written_in_four_ways(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in ("a b/1", "~/a b/2", str(tmp_path / "a b" / "3"), (tmp_path / "a b" / "4").as_uri()):
        storage.write_bytes(uri, b"x")
        assert storage.read_bytes(uri) == b"x"
    assert sorted(path.name for path in (tmp_path / "a b").iterdir()) == ["1", "2", "3", "4"]
    assert storage.list_files((tmp_path / "a b").as_uri()) == [str(tmp_path / "a b" / name) for name in "1234"]


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x", "s3a://bucket/x"])
@pytest.mark.parametrize("use", [storage.read_bytes, storage.exists, storage.list_files, storage.delete])
def test_an_unknown_scheme_is_refused(uri: str, use):
    with pytest.raises(StorageError, match="unknown kind of store") as caught:
        use(uri)
    assert uri in str(caught.value)
    assert "s3://" in caught.value.remedy


def test_joining_keeps_one_slash():
    assert storage.join("s3://bucket/prefix/", "/a/", "b") == "s3://bucket/prefix/a/b"
    assert storage.join("/data", "a") == "/data/a"
