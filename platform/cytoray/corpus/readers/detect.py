"""Tell what a file or a folder is, by its first bytes and the names of what lies in it."""

from __future__ import annotations

from collections.abc import Iterable

from cytoray.corpus.readers.hdf5 import SIGNATURE
from cytoray.corpus.readers.mtx import is_mtx
from cytoray.corpus.readers.zarr_store import is_zarr

HEAD_BYTES = 512
FILE_ENDINGS = (".h5ad", ".h5mu", ".h5", ".loom", ".parquet", ".arrow", ".feather", "matrix.mtx", "matrix.mtx.gz")
FOLDER_ENDINGS = (".zarr", ".scb")
KNOWN = ".h5ad, .h5mu, .zarr, 10x .h5 or mtx folder, .loom, .scb, .parquet, .arrow"
_ZARR_ROOTS = ("zarr.json", ".zgroup")
_TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
_FOREIGN = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip file"),
    (b"PK\x03\x04", "a zip archive (or an Excel file)"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"RDX", "an R data file"),
    (b"\x80", "a Python pickle"),
)


def looks_like(head: bytes) -> str:
    """What a file is, in words, by its first bytes."""
    if not head:
        return "an empty file"
    for magic, words in _FOREIGN:
        if head.startswith(magic):
            return words
    start = head.lstrip()[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (an error page of a download?)"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself"
    printable = sum(byte >= 32 or byte in (9, 10, 13) for byte in head)
    return "plain text" if printable == len(head) else "a file of no known kind"


def is_hdf5(head: bytes) -> bool:
    """Whether a file begins as HDF5 does; a truncated signature counts."""
    return head.startswith(SIGNATURE)


def is_table(head: bytes) -> bool:
    """Whether a file begins as parquet or Arrow do."""
    return head.startswith(_TABLES)


def is_source_folder(keys: Iterable[str]) -> bool:
    """Whether what lies in a folder makes it one source: zarr, scb, or the mtx of 10x."""
    names = set(keys)
    return is_zarr(names) or "gene_vocab.json" in names or bool(names & {"matrix.mtx", "matrix.mtx.gz"})


def find_sources(keys: Iterable[str]) -> list[str]:
    """Files and folders of cells among the keys below a prefix, sorted; what lies in such a folder is not named."""
    names = sorted(keys)
    folders = {folder for name in names if (folder := _folder_of(name))}
    folders = {folder for folder in folders if not any(other in folders for other in _parents(folder))}
    files = [name for name in names if name.endswith(FILE_ENDINGS) and not any(p in folders for p in _parents(name))]
    return sorted([*folders, *files])


def _folder_of(name: str) -> str:
    """The folder that is a source of its own because of this file, empty if none."""
    parts = name.split("/")
    for depth, part in enumerate(parts[:-1], start=1):
        if part.endswith(FOLDER_ENDINGS):
            return "/".join(parts[:depth])
    folder, _, last = name.rpartition("/")
    is_root = last in _ZARR_ROOTS or last == "gene_vocab.json" or (is_mtx(last) and last.startswith("matrix"))
    return folder if is_root else ""


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]
