"""Open a source of cells in whatever format it is, and find the sources below a prefix."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import h5py

from cytoray import storage
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers import detect
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.h5ad import TOUCHED, AnnDataContents
from cytoray.corpus.readers.h5mu import MuDataContents
from cytoray.corpus.readers.hdf5 import open_h5, refuse_links
from cytoray.corpus.readers.loom import LoomContents
from cytoray.corpus.readers.mtx import find_parts, is_mtx, open_mtx
from cytoray.corpus.readers.problems import explained
from cytoray.corpus.readers.scb import ScbContents
from cytoray.corpus.readers.source import Contents, SourceReader
from cytoray.corpus.readers.tenx import is_tenx, open_tenx_h5
from cytoray.corpus.readers.triples import TriplesContents
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


def expand_sources(sources: Sequence[SourceConfig]) -> list[SourceConfig]:
    """Replace each prefix by the sources below it; CorpusError if two of them would give the same cell ids."""
    expanded = [one for source in sources for one in _expand(source)]
    for identity, count in Counter(source.identity for source in expanded).items():
        if count > 1:
            raise CorpusError(
                f"{count} sources are called {identity!r}, so their cells could not be told apart.",
                remedy="Give each a `name`, or list the file once.",
            )
    return expanded


def _expand(source: SourceConfig) -> list[SourceConfig]:
    """The sources that one entry of a configuration stands for."""
    if not source.uri.endswith("/"):
        return [source]
    folder = _Folder.listed(source.uri)
    if detect.is_source_folder(folder.objects):
        return [source.model_copy(update={"uri": source.uri.rstrip("/")})]
    found = detect.find_sources(folder.objects)
    if not found:
        raise CorpusError(
            f"{source.uri}: there is no file of cells below this prefix ({len(folder.objects):,} other files).",
            remedy=f"Check the path. Known are {detect.KNOWN}.",
            uri=source.uri,
        )
    uris = {key: folder.objects[key].uri if key in folder.objects else storage.join(source.uri, key) for key in found}
    return [source.model_copy(update={"uri": uris[key], "name": (source.name or "") + key}) for key in found]


@dataclass(frozen=True)
class _Folder:
    """A folder, by what lies in it."""

    uri: str
    objects: dict[str, storage.ObjectInfo]  # by key below the folder

    @classmethod
    def listed(cls, uri: str) -> _Folder:
        """List the folder ``uri``, all pages of it."""
        root = uri.rstrip("/") if storage.is_remote(uri) else str(storage.local_path(uri))
        found = storage.list_objects(uri.rstrip("/") + "/")
        return cls(root, {info.uri.removeprefix(f"{root}/"): info for info in found})

    def info(self) -> storage.ObjectInfo:
        """Bytes of all files together, and a digest over their versions."""
        versions = repr(sorted((key, info.version) for key, info in self.objects.items()))
        num_bytes = sum(info.num_bytes for info in self.objects.values())
        return storage.ObjectInfo(self.uri, num_bytes, hashlib.sha256(versions.encode()).hexdigest()[:32])


def _open_contents(source: SourceConfig, stack: contextlib.ExitStack) -> Contents:
    """The file of this name, or the folder."""
    try:
        info = storage.info(source.uri)
    except StorageError as error:
        if not error.details.get("is_folder"):
            raise
        return _open_folder(source, _Folder.listed(source.uri), stack)
    return _open_file(source, info, stack)


def _open_folder(source: SourceConfig, folder: _Folder, stack: contextlib.ExitStack) -> Contents:
    """A folder of zarr, mtx or scb."""
    names = list(folder.objects)
    with explained(source.uri, "the folder"):
        if source.format == "zarr" or (source.format == "auto" and is_zarr(names)):
            return AnnDataContents(open_zarr(folder.uri, folder.objects), "zarr", folder.info())
        if source.format == "scb" or (source.format == "auto" and "gene_vocab.json" in names):
            return ScbContents(folder.objects, folder.info(), stack)
        matrices = [name for name in names if is_mtx(name) and "/" not in name]
        if source.format == "10x_mtx" or (source.format == "auto" and len(matrices) == 1):
            prefix = matrices[0].partition("matrix.mtx")[0] if matrices else ""
            parts = find_parts(names, prefix)
            return open_mtx({part: folder.objects[key] for part, key in parts.items()}, folder.info())
    raise CorpusError(
        f"{source.uri} is a folder that is no {'source of cells' if source.format == 'auto' else source.format}.",
        remedy="End it with '/' to read all files below it. Known folders are zarr, scb and 10x mtx.",
        uri=source.uri,
    )


def _open_file(source: SourceConfig, info: storage.ObjectInfo, stack: contextlib.ExitStack) -> Contents:
    """A single file, by its content, whatever its name."""
    head = storage.read_bytes(source.uri, start=0, end=min(detect.HEAD_BYTES, info.num_bytes))
    if is_mtx(source.uri):
        return _open_prefixed_mtx(source)
    if detect.is_table(head):
        with explained(source.uri, "the table"):
            return TriplesContents(info, stack)
    if head and not detect.is_hdf5(head):
        raise CorpusError(
            f"{source.uri}: this looks like {detect.looks_like(head)}, not like a file of cells.",
            remedy=f"Known are {detect.KNOWN}.",
            uri=source.uri,
        )
    file = open_h5(info, stack)
    with explained(source.uri, "the list of groups"):
        refuse_links(file, source.uri, [*TOUCHED, "matrix", "row_attrs", "col_attrs"])
        return _open_hdf5(source, file, info)


def _open_hdf5(source: SourceConfig, file: h5py.File, info: storage.ObjectInfo) -> Contents:
    """An HDF5 file, by the names of its groups."""
    is_auto = source.format == "auto"
    if source.format == "h5mu" or (is_auto and "mod" in file and "X" not in file):
        return MuDataContents(file, info)
    if source.format == "loom" or (is_auto and {"matrix", "row_attrs", "col_attrs"} <= set(file)):
        return LoomContents(file, info)
    if source.format == "10x_h5" or (is_auto and "obs" not in file and is_tenx(file)):
        return open_tenx_h5(file, info)
    return AnnDataContents(file, "h5ad", info)


def _open_prefixed_mtx(source: SourceConfig) -> Contents:
    """A matrix.mtx by its own name, its companions beside it under the same prefix (as GEO has them)."""
    folder_uri, _, name = source.uri.rpartition("/")
    folder = _Folder.listed(folder_uri or ".")
    with explained(source.uri, "the files beside it"):
        parts = find_parts([key for key in folder.objects if "/" not in key], name.partition("matrix.mtx")[0])
        beside = {key: folder.objects[key] for key in [name, parts["features"], parts["barcodes"]]}
        files = {"matrix": beside[name], **{part: beside[parts[part]] for part in ("features", "barcodes")}}
        return open_mtx(files, _Folder(source.uri, beside).info())
