"""Open a source of cells in whatever format it is."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import h5py

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers import companions, detect
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.companions import find_parts, is_mtx, is_plain_matrix
from cytoray.corpus.readers.h5ad import TOUCHED, AnnDataContents
from cytoray.corpus.readers.h5mu import MuDataContents
from cytoray.corpus.readers.hdf5 import open_h5, refuse_links
from cytoray.corpus.readers.loom import LoomContents
from cytoray.corpus.readers.mtx import open_mtx
from cytoray.corpus.readers.problems import NOT_CELLS, UnreadableError, explained
from cytoray.corpus.readers.ranges import read_object
from cytoray.corpus.readers.scb import ScbContents
from cytoray.corpus.readers.source import Contents, SourceReader
from cytoray.corpus.readers.tenx import is_tenx, open_tenx_h5
from cytoray.corpus.readers.triples import TriplesContents
from cytoray.corpus.readers.unpacking import packing_of, unpack
from cytoray.corpus.readers.zarr_store import is_zarr, open_zarr
from cytoray.errors import CorpusError, StorageError


def open_source(source: SourceConfig) -> CellReader:
    """Open one source; use the reader as a context manager. CorpusError in one line where it cannot be read."""
    with contextlib.ExitStack() as stack:
        contents = _open_contents(source, stack)
        if source.format not in ("auto", contents.format):
            raise CorpusError(
                f"{source.uri}: this is {contents.format}, not {source.format}.",
                remedy="Leave `format` out: it is told by the content.",
                uri=source.uri,
            )
        return SourceReader(source, contents, stack.pop_all())


@dataclass(frozen=True)
class Folder:
    """A folder or an archive, by what lies in it."""

    uri: str
    objects: dict[str, storage.ObjectInfo]  # by key below the folder
    packed: storage.ObjectInfo | None = None  # the archive, if it is one

    @classmethod
    def listed(cls, uri: str) -> Folder:
        """List the folder ``uri``, all pages of it."""
        root = uri.rstrip("/") if storage.is_remote(uri) else str(storage.local_path(uri))
        found = storage.list_objects(uri.rstrip("/") + "/")
        return cls(root, {info.uri.removeprefix(f"{root}/"): info for info in found})

    def info(self) -> storage.ObjectInfo:
        """Size of all files together and a digest over their versions; those of an archive are its own."""
        if self.packed is not None:
            return storage.ObjectInfo(self.uri, self.packed.num_bytes, self.packed.version, self.packed.modified_s)
        versions = repr(sorted((key, info.version) for key, info in self.objects.items()))
        num_bytes = sum(info.num_bytes for info in self.objects.values())
        return storage.ObjectInfo(self.uri, num_bytes, hashlib.sha256(versions.encode()).hexdigest()[:32])

    def inner(self, key: str) -> Folder:
        """The folder ``key`` in this one; itself for the empty key."""
        if not key:
            return self
        objects = {
            name.removeprefix(f"{key}/"): info for name, info in self.objects.items() if name.startswith(f"{key}/")
        }
        return Folder(f"{self.uri}/{key}", objects, self.packed)

    def beside(self, key: str) -> Folder:
        """The folder that a file lies in, without its inner folders."""
        inner = self.inner(key.rpartition("/")[0])
        return Folder(inner.uri, {name: info for name, info in inner.objects.items() if "/" not in name}, self.packed)


def _open_contents(source: SourceConfig, stack: contextlib.ExitStack) -> Contents:
    """Open the file of this name, or the folder."""
    try:
        info = storage.info(source.uri)
    except StorageError as error:
        if not error.details.get("is_folder"):
            raise
        return _open_folder(source, Folder.listed(source.uri), stack)
    if is_mtx(source.uri):
        folder_uri, _, name = source.uri.rpartition("/")
        with explained(source.uri, "the file"):
            return _open_matrix(Folder.listed(folder_uri or ".").beside(name), name)
    return _open_file(source, info, stack)


def _open_folder(source: SourceConfig, folder: Folder, stack: contextlib.ExitStack) -> Contents:
    """Open a folder of zarr, scb or mtx."""
    names = list(folder.objects)
    with explained(source.uri, "the folder"):
        if source.format == "zarr" or (source.format == "auto" and is_zarr(names)):
            return _anndata_of(open_zarr(folder.uri, folder.objects), "zarr", folder.info())
        if source.format == "scb" or (source.format == "auto" and "gene_vocab.json" in names):
            return ScbContents(folder.objects, folder.info(), stack)
        matrices = sorted(filter(is_mtx, folder.beside("").objects))
        plain = [name for name in matrices if is_plain_matrix(name)]
        if source.format == "10x_mtx" or (source.format == "auto" and (plain or len(matrices) == 1)):
            return _open_matrix(folder.beside(""), (plain or matrices or ["matrix.mtx"])[0])
    what = "source of cells" if source.format == "auto" else source.format
    raise CorpusError(
        f"{source.uri} is a folder that is not a {what}.",
        remedy="End it with '/' to read all files below it. Known folders are zarr, scb and 10x mtx.",
        uri=source.uri,
        rule=NOT_CELLS,
    )


def _open_matrix(folder: Folder, name: str) -> Contents:
    """Open a MatrixMarket file with the two tables beside it."""
    parts = find_parts(folder.objects, name)
    if name not in folder.objects:
        raise UnreadableError(f"{name} is missing", remedy=companions.REMEDY)
    files = {part: folder.objects[key] for part, key in parts.items()}
    whole = Folder(files["matrix"].uri, {parts[part]: info for part, info in files.items()}, folder.packed)
    return open_mtx(files, whole.info())


def _open_file(source: SourceConfig, info: storage.ObjectInfo, stack: contextlib.ExitStack) -> Contents:
    """Open a single file by its content, whatever its name."""
    head = read_object(info, 0, min(detect.HEAD_BYTES, info.num_bytes))
    if packing := packing_of(head):
        with explained(source.uri, f"the {packing} file"):
            members = unpack(info)
        contents = _open_packed(source, Folder(info.uri, members, info), stack)
        contents.num_bytes = info.num_bytes
        return contents
    if detect.is_table(head):
        with explained(source.uri, "the table"):
            return TriplesContents(info, stack)
    if head and not detect.is_hdf5(head):
        raise CorpusError(
            f"{source.uri}: this looks like {detect.looks_like(head)}, not like a file of cells.",
            remedy=f"Known are {detect.KNOWN}.",
            uri=source.uri,
            rule=NOT_CELLS,
        )
    file = open_h5(info, stack)
    with explained(source.uri, "the list of groups"):
        refuse_links(file, source.uri, [*TOUCHED, "matrix", "row_attrs", "col_attrs"])
        return _open_hdf5(source, file, info)


def _open_packed(source: SourceConfig, folder: Folder, stack: contextlib.ExitStack) -> Contents:
    """Open what was compressed, or the one source in an archive."""
    if "" in folder.objects:
        return _open_file(source, folder.objects[""], stack)
    found = detect.survey(folder.objects).sources
    if len(found) != 1:
        raise not_one_source(source.uri, found)
    if found[0] not in folder.objects:
        return _open_folder(source, folder.inner(found[0]), stack)
    if is_mtx(found[0]):
        with explained(source.uri, found[0]):
            return _open_matrix(folder.beside(found[0]), found[0].rpartition("/")[2])
    return _open_file(source, folder.objects[found[0]], stack)


def not_one_source(uri: str, found: Sequence[str]) -> CorpusError:
    """Build the error for an archive that holds no source, or several."""
    problem, remedy = "holds no file of cells that is known", f"Known are {detect.KNOWN}."
    if found:
        problem = f"holds {len(found):,} sources of cells ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        remedy = "Unpack it and name the folder."
    return CorpusError(f"{uri}: the archive {problem}.", remedy=remedy, uri=uri, rule=NOT_CELLS)


def _open_hdf5(source: SourceConfig, file: h5py.File, info: storage.ObjectInfo) -> Contents:
    """Open an HDF5 file by the names of its groups."""
    is_auto = source.format == "auto"
    if source.format == "loom" or (is_auto and {"matrix", "row_attrs", "col_attrs"} <= set(file)):
        return LoomContents(file, info)
    if source.format == "10x_h5" or (is_auto and "obs" not in file and is_tenx(file)):
        return open_tenx_h5(file, info)
    if source.format == "h5mu":
        return MuDataContents(file, "h5mu", info)
    return _anndata_of(file, "h5ad", info)


def _anndata_of(tree: Any, format: Literal["h5ad", "zarr"], info: storage.ObjectInfo) -> Contents:
    """The AnnData in a tree of groups, which may be one of several in it."""
    if "mod" in tree and "X" not in tree:
        return MuDataContents(tree, "h5mu" if format == "h5ad" else format, info)
    if "X" not in tree and (tables := [name for key in ("tables", "table") for name in _anndatas(tree, key)]):
        if len(tables) > 1:
            raise UnreadableError(
                f"it is SpatialData with {len(tables)} tables",
                remedy=f"Name the one to be read, as a folder: {info.uri}/{tables[0]} (there are {', '.join(tables)}).",
            )
        contents = AnnDataContents(tree[tables[0]], format, info)
        contents.notes.append(f"SpatialData, of which {tables[0]} is read")
        return contents
    if not any(key in tree for key in ("X", "obs", "var", "raw.X")):
        problem, remedy = _foreign_tree(tree)
        raise UnreadableError(problem, remedy=remedy, rule=NOT_CELLS)
    return AnnDataContents(tree, format, info)


def _anndatas(tree: Any, key: str) -> list[str]:
    """Paths of the groups right below ``key`` that are AnnData."""
    group = tree.get(key, {})
    if hasattr(group, "shape"):
        return []
    start = f"{key}/" if key != "/" else ""
    return [
        f"{start}{name}"
        for name in sorted(group)
        if not hasattr(group[name], "shape") and {"obs", "var"} <= set(group[name])
    ]


def _foreign_tree(tree: Any) -> tuple[str, str]:
    """Problem and remedy for a tree of groups without X, obs and var."""
    if "barcode_idx" in tree:
        return detect.MOLECULES
    if "assays" in tree and "cell.names" in tree:
        return "it is an h5Seurat file", "Convert it to h5ad in R: SeuratDisk::Convert(file, dest = 'h5ad')."
    if inner := _anndatas(tree, "/"):
        write = f"anndata.io.read_elem(h5py.File(path)[{inner[0]!r}]).write_h5ad('{inner[0]}.h5ad')"
        return f"it is not AnnData, but its groups {', '.join(inner)} are", f"Write each to a file: {write}."
    groups = ", ".join(sorted(map(str, tree))[:10]) or "nothing"
    return f"it has no X, obs and var (it has {groups})", f"It is not a file of cells. Known are {detect.KNOWN}."
