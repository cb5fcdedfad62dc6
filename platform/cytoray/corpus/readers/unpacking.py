"""Unpack compressed files, and zip and tar archives, whatever they are called, into temporary files without a name.

A temporary file has no name from the start, so it is gone with the process however that ends. The files last unpacked
are kept, so that the next reader of the same source in this process finds them.
"""

from __future__ import annotations

import bz2
import io
import lzma
import shutil
import tarfile
import zipfile
from collections import OrderedDict
from typing import Any

import pyarrow as pa
from isal import igzip

from cytoray import storage
from cytoray.corpus.readers.ranges import Scratch, UnpackedObject, open_object, read_object

HEAD_BYTES = 512
KEPT_OBJECTS = 2  # each takes as much disk as the object unpacked
COPY_BYTES = 2**22
COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zst")
ARCHIVE_ENDINGS = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_kept: OrderedDict[tuple[str, str], dict[str, storage.ObjectInfo]] = OrderedDict()


def packing_of(head: bytes) -> str:
    """Name the compression or kind of archive of a file by its first bytes; empty if it is neither."""
    if head[257:262] == b"ustar":
        return "tar"
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def without_packing(name: str) -> str:
    """A file's name without the endings of compression and archives."""
    while name.lower().endswith((*COMPRESSED_ENDINGS, ".zip", ".tar", ".tgz")):
        name = name.rpartition(".")[0]
    return name


def open_inflated(info: storage.ObjectInfo) -> io.BufferedReader:
    """Open a file for reading from front to back, inflated if its content is compressed."""
    packing = packing_of(read_object(info, 0, min(HEAD_BYTES, info.num_bytes)))
    file: Any = open_object(info)
    if packing in ("gzip", "bzip2", "xz", "zstd"):
        file = _inflated(file, packing)
    return io.BufferedReader(file, 2**20)


def unpack(info: storage.ObjectInfo) -> dict[str, storage.ObjectInfo]:
    """The files in a packed object by their name in it; a compressed file has the empty name.

    Raises what reading damaged files raises; see ``explained``.
    """
    key = (info.uri, info.version)
    if key not in _kept:
        _kept[key] = _unpack(info)
        while len(_kept) > KEPT_OBJECTS:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]


def names_in_zip(info: storage.ObjectInfo) -> list[str]:
    """The names of the files in a zip archive, from its directory alone."""
    with open_object(info) as file, zipfile.ZipFile(file) as archive:
        return [member.filename for member in archive.infolist() if _is_content(member.filename)]


def _unpack(info: storage.ObjectInfo) -> dict[str, storage.ObjectInfo]:
    """Unpack layer by layer: a .tar.gz is a tar archive in a gzip file."""
    packing = packing_of(read_object(info, 0, min(HEAD_BYTES, info.num_bytes)))
    if packing == "zip":
        return _unzip(info)
    if packing == "tar":
        return _members_of_tar(_copy_of(info) if not isinstance(info, UnpackedObject) else info)
    with open_inflated(info) as source:
        inner = _copied(source, info)
    return _unpack(inner) if packing_of(read_object(inner, 0, HEAD_BYTES)) else {"": inner}


def _copy_of(info: storage.ObjectInfo) -> UnpackedObject:
    with open_object(info) as source:
        return _copied(source, info)


def _copied(source: Any, info: storage.ObjectInfo) -> UnpackedObject:
    """All bytes of ``source`` in a temporary file."""
    scratch = Scratch()
    shutil.copyfileobj(source, scratch, COPY_BYTES)
    return UnpackedObject(info.uri, scratch.finished(), info.version, info.modified_s, file=scratch)


def _unzip(info: storage.ObjectInfo) -> dict[str, storage.ObjectInfo]:
    """Inflate the files of a zip archive, one behind the other, into one temporary file."""
    scratch = Scratch()
    members: dict[str, storage.ObjectInfo] = {}
    with open_object(info) as file, zipfile.ZipFile(file) as archive:
        for name in filter(_is_content, archive.namelist()):
            start = scratch.finished()
            with archive.open(name) as source:
                shutil.copyfileobj(source, scratch, COPY_BYTES)
            members[name] = _member(info, name, (start, scratch.finished() - start), scratch)
    return members


def _members_of_tar(info: UnpackedObject) -> dict[str, storage.ObjectInfo]:
    """The files of a tar archive, which lie in it as they are."""
    members: dict[str, storage.ObjectInfo] = {}
    with open_object(info) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isreg() and _is_content(name):
                members[name] = _member(info, name, (info.start + member.offset_data, member.size), info.file)
    return members


def _member(info: storage.ObjectInfo, name: str, place: tuple[int, int], file: Scratch) -> UnpackedObject:
    """One file of an archive, by its first byte and its size in the temporary file."""
    uri = f"{info.uri}/{name}"
    return UnpackedObject(uri, place[1], info.version, info.modified_s, file=file, start=place[0])


def _is_content(name: str) -> bool:
    """Whether a name in an archive is that of a file, not of a folder or of what macOS adds."""
    return not name.endswith("/") and not name.startswith("__MACOSX/") and not name.endswith(".DS_Store")


def _inflated(file: Any, packing: str) -> Any:
    """The bytes that were compressed, from front to back."""
    if packing == "gzip":
        gzip_file: Any = igzip.GzipFile
        return gzip_file(fileobj=file)
    if packing == "zstd":
        return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")
    return bz2.BZ2File(file) if packing == "bzip2" else lzma.LZMAFile(file)
