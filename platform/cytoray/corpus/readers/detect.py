"""Recognise a file or a folder by its first bytes and by the names of what lies in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cytoray.corpus.readers.companions import find_matrices, is_mtx, is_plain_matrix
from cytoray.corpus.readers.hdf5 import SIGNATURE
from cytoray.corpus.readers.problems import UnreadableError
from cytoray.corpus.readers.unpacking import ARCHIVE_ENDINGS, HEAD_BYTES, without_packing

__all__ = ["HEAD_BYTES", "KNOWN", "Survey", "is_hdf5", "is_table", "looks_like", "survey"]
# Of these endings the content is nearly always cells; a file with another of them is opened to see what it is.
CELL_ENDINGS = (".h5ad", ".h5mu", ".loom")
UNSURE_ENDINGS = (".h5", ".hdf5", ".parquet", ".arrow", ".feather")
FOLDER_ENDINGS = (".zarr", ".scb")
KNOWN = ".h5ad, .h5mu, .zarr, 10x .h5 or mtx folder, .loom, .scb, .parquet, .arrow; each also as .gz or .zip"
_ZARR_ROOTS = ("zarr.json", ".zgroup")
_TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")
_FOREIGN = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"SQLite format 3", "an SQLite database"),
    (b"RDX", "an R data file"),
    (b"%%MatrixMarket", "a MatrixMarket file without the ending .mtx"),
    (b"\x80", "a Python pickle"),
)
_RAW = re.compile(r"(?<![a-z])(raw|unfiltered)(?![a-z])", re.IGNORECASE)


def looks_like(head: bytes) -> str:
    """Describe a file by its first bytes."""
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
    return "plain text" if printable == len(head) else "a file of unknown kind"


def is_hdf5(head: bytes) -> bool:
    """Whether a file begins as HDF5 does; a truncated signature counts."""
    return head.startswith(SIGNATURE)


def is_table(head: bytes) -> bool:
    """Whether a file begins as parquet or Arrow do."""
    return head.startswith(_TABLES)


@dataclass(frozen=True)
class Survey:
    """What lies below a prefix, judged by names: keys of sources (empty: the prefix itself) and of what is not read."""

    sources: tuple[str, ...]
    not_read: Mapping[str, tuple[str, str]]  # reason and remedy by key
    unsure: frozenset[str]  # sources that must be opened to see whether they hold cells


def survey(keys: Iterable[str]) -> Survey:
    """Sort the keys below a prefix into files and folders of cells, and all others with the reason.

    Of an unfiltered matrix (raw) beside the filtered one, and of one matrix in two formats, one is read.
    """
    names = sorted(keys)
    folders = _whole_folders(names)
    free = [name for name in names if not any(parent in folders for parent in _parents(name))]
    matrices, refused = _matrices(free)
    used = {part for parts in matrices.values() for part in parts}
    sources = {*folders, *matrices}
    unsure = set()
    for name in free:
        if name in used or name in refused:
            continue
        stem, is_tenx = without_packing(name).lower(), "bc_matri" in name
        is_archive = name.lower().endswith(ARCHIVE_ENDINGS)
        if name.rpartition("/")[2].startswith(".") or stem.endswith(_MOLECULES_ENDING):
            refused[name] = _why_not(name)
        elif stem.endswith((*CELL_ENDINGS, *FOLDER_ENDINGS)) or (is_archive and is_tenx):
            sources.add(name)
        elif stem.endswith(UNSURE_ENDINGS) or name.lower().endswith(".zip"):
            sources.add(name)
            unsure |= set() if is_tenx else {name}
        else:
            refused[name] = _why_not(name)
    doubles = _doubles(sources)
    left = sources - set(doubles)
    return Survey(tuple(sorted(left)), {**refused, **doubles}, frozenset(unsure & left))


_MOLECULES_ENDING = "molecule_info.h5"
MOLECULES = (
    "the molecules of Cell Ranger, not a matrix of cells",
    "Read filtered_feature_bc_matrix.h5 of the same run instead.",
)
_TO_H5AD = "adata.write_h5ad('cells.h5ad')"
# Reason and remedy by ending; the first that fits counts.
_KINDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((_MOLECULES_ENDING,), *MOLECULES),
    (
        (".rds", ".rdata", ".rda", ".robj", ".h5seurat", ".qs"),
        "an R object",
        "Convert it to h5ad in R, for instance with zellkonverter::writeH5AD or sceasy::convertFormat.",
    ),
    (ARCHIVE_ENDINGS, "an archive of unknown content", "Unpack it, or name the file itself if it holds one matrix."),
    (
        (".csv", ".tsv", ".txt", ".tab", ".dge"),
        "a table in text",
        f"If it holds counts, save it as h5ad: adata = scanpy.read_csv(file).T; {_TO_H5AD}.",
    ),
    ((".xlsx", ".xls"), "a spreadsheet", f"If it holds counts: adata = scanpy.read_excel(file, sheet).T; {_TO_H5AD}."),
)


def _why_not(name: str) -> tuple[str, str]:
    """Reason and remedy for a file that is not read, by its name."""
    if name.rpartition("/")[2].startswith("."):
        return "a hidden file", "Rename it if it holds cells."
    whole, stem = name.lower(), without_packing(name).lower()
    for endings, reason, remedy in _KINDS:
        if whole.endswith(endings) or stem.endswith(endings):
            return reason, remedy
    return "not a file of cells by its name", f"Known are {KNOWN}."


def _whole_folders(names: list[str]) -> set[str]:
    """Folders of zarr and scb; the empty name is that of the prefix itself."""
    found = {folder for name in names if (folder := _folder_of(name)) is not None}
    return {folder for folder in found if not any(parent in found for parent in _parents(folder) if folder)}


def _folder_of(name: str) -> str | None:
    """The folder that is a source because of this file."""
    parts = name.split("/")
    for depth, part in enumerate(parts[:-1], start=1):
        if part.endswith(FOLDER_ENDINGS):
            return "/".join(parts[:depth])
    folder, _, last = name.rpartition("/")
    return folder if last in _ZARR_ROOTS or last == "gene_vocab.json" else None


def _parents(name: str) -> list[str]:
    """All folders above a key, the prefix itself (the empty name) included."""
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(len(parts))]


def _matrices(names: list[str]) -> tuple[dict[str, list[str]], dict[str, tuple[str, str]]]:
    """MatrixMarket files (a folder for ``matrix.mtx``) with all their files, and those that are not read."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, _, last = name.rpartition("/")
        by_folder.setdefault(folder, []).append(last)
    found: dict[str, list[str]] = {}
    refused: dict[str, tuple[str, str]] = {}
    for folder, files in by_folder.items():
        if not any(map(is_mtx, files)):
            continue
        start = f"{folder}/" if folder else ""
        matrices, bad = find_matrices(files)
        for name, parts in matrices.items():
            key = folder if is_plain_matrix(name) else start + name
            found[key] = [start + part for part in parts.values()]
        refused |= {start + name: _words(error) for name, error in bad.items()}
    return found, refused


def _words(error: UnreadableError) -> tuple[str, str]:
    return str(error), error.remedy


def _doubles(sources: set[str]) -> dict[str, tuple[str, str]]:
    """Sources that hold the cells of another one: unfiltered beside filtered, a folder beside its .h5."""
    by_stem: dict[str, list[str]] = {}
    for key in sorted(sources, key=lambda key: (not key.endswith((".h5", ".h5ad")), key)):
        by_stem.setdefault(_stem(key), []).append(key)
    doubles = {}
    for stem, same in by_stem.items():
        filtered = _filtered_partner(stem, by_stem)
        for key in same:
            if filtered is not None:
                doubles[key] = (
                    f"the unfiltered droplets beside {filtered}",
                    "Name it itself to read it all the same; nearly all of its droplets are empty.",
                )
            elif key != same[0] and (same[0].endswith(".h5") or without_packing(key) == without_packing(same[0])):
                doubles[key] = (f"the same matrix as {same[0]}", "Name it itself to read it instead.")
    return doubles


def _stem(key: str) -> str:
    """A key without what tells formats of one matrix apart: endings, and the genome folder of Cell Ranger 2."""
    folder, _, last = key.rpartition("/")
    if re.search(r"gene_bc_matrices$", folder):
        return folder
    plain = without_packing(last)
    if "bc_matri" in plain:
        plain = plain.removesuffix(".h5").removesuffix("_h5").removesuffix(".h5ad")
    return f"{folder}/{plain}" if folder else plain


def _filtered_partner(stem: str, by_stem: Mapping[str, list[str]]) -> str | None:
    """The source with the filtered cells of an unfiltered one."""
    if not _RAW.search(stem):
        return None
    wanted = {_RAW.sub("filtered", stem)}
    head, found, last = stem.rpartition("/")
    wanted.add(f"{head}{found}{_RAW.sub('filtered', last)}")
    for other, keys in by_stem.items():
        # cellranger multi: the droplets of all samples lie in multi/count, the cells of each in per_sample_outs.
        outs, multi, _ = stem.rpartition("multi/count/raw_")
        is_sample = multi and other.startswith(f"{outs}per_sample_outs/") and "sample_filtered_" in other
        if other in wanted or is_sample:
            return keys[0]
    return None
