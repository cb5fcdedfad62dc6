"""Open an HDF5 file, local or remote, refuse what leads out of it, and read its gzip arrays faster than HDF5 does."""

# N elements

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 - registers blosc, zstd, lz4 and bzip2 with HDF5
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5z
from isal import isal_zlib

from cytoray import storage
from cytoray.corpus.readers.problems import DAMAGE, FETCH_AGAIN
from cytoray.corpus.readers.ranges import RangeFile, UnpackedFile, UnpackedObject
from cytoray.errors import CorpusError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHUNK_CACHE_BYTES = 32 * 2**20  # a dense matrix's chunks straddle the pieces it is read in


def _open(place: Any) -> h5py.File:
    """Without a lock: many tasks read one file, and it may lie on a disk that knows no locks."""
    try:
        return h5py.File(place, "r", locking=False, rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        if "locking flag" not in str(error):
            raise
        # This process has the file open already (a backed AnnData): HDF5 wants the same choice as then.
        return h5py.File(place, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)


def open_h5(info: storage.ObjectInfo, stack: contextlib.ExitStack) -> h5py.File:
    """Open an HDF5 file for reading, closed by ``stack``; CorpusError in plain words if HDF5 cannot open it."""
    place: Any
    if isinstance(info, UnpackedObject):
        place = UnpackedFile(info)
    elif storage.is_remote(info.uri):
        place = RangeFile(info.uri, info.num_bytes)
    else:
        place = str(storage.local_path(info.uri))
    try:
        return stack.enter_context(_open(place))
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        problem = f"the file cannot be opened as HDF5 ({reason})"
        if info.num_bytes == 0:
            problem = "the file is empty"
        elif "truncated" in reason:
            problem = "the file is truncated (its end is missing)"
        elif "signature" in reason:
            problem = "this is not an HDF5 file (no HDF5 signature)"
        raise CorpusError(f"{info.uri}: {problem}.", remedy=FETCH_AGAIN, uri=info.uri) from error


def refuse_links(file: h5py.File, uri: str, keys: Iterable[str]) -> None:
    """Raise CorpusError if a part of the file is kept in another: a link out, virtual or external data."""
    for key in keys:
        link = file.get(key, getlink=True)
        if link is None:
            continue
        _refuse(file, uri, {key: link})
        links: dict[str, Any] = {}
        if isinstance(group := file.get(key), h5py.Group):
            group.visititems_links(lambda name, link, key=key, links=links: links.update({f"{key}/{name}": link}))
        _refuse(file, uri, links)


def _refuse(file: h5py.File, uri: str, links: Mapping[str, Any]) -> None:
    """Raise CorpusError if one of these objects is kept elsewhere."""
    for name, link in links.items():
        if kind := _kept_elsewhere(file, name, link):
            raise CorpusError(
                f"{uri}: {name} is {kind}.",
                remedy="Such files are not read: copy the data into one file (adata.write_h5ad does).",
                uri=uri,
                key=name,
            )


def _kept_elsewhere(file: h5py.File, name: str, link: Any) -> str:
    """In which way an object is kept in another file, empty if it is not."""
    if isinstance(link, h5py.ExternalLink):
        return f"a link to another file ({link.filename})"
    try:
        element = file.get(name)
    except DAMAGE:
        return "a link that cannot be followed"
    if element is not None and h5py.h5o.get_info(element.id).fileno != h5py.h5o.get_info(file.id).fileno:
        return "a link that ends in another file"
    if isinstance(element, h5py.Dataset) and element.is_virtual:
        return "a virtual dataset, put together from other files"
    if isinstance(element, h5py.Dataset) and element.external:
        return "data in an external file"
    return ""


class H5Array:
    """A dataset of one axis; where it is kept in gzip chunks these are inflated by isal, twice as fast as by HDF5."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype[Any] = dataset.dtype
        self.chunks: tuple[int, ...] | None = dataset.chunks
        self._shuffled = _deflate_shuffle(dataset)
        self._last: tuple[int, npt.NDArray[Any]] | None = (
            None  # ranges straddle chunks: the next begins where one ended
        )

    def __getitem__(self, place: slice) -> npt.NDArray[Any]:
        """Elements of a range without a step, shape (N,)."""
        start, stop, _ = place.indices(self.shape[0])
        if self._shuffled is None or self.chunks is None or stop <= start:
            return np.asarray(self._dataset[start:stop])
        length = self.chunks[0]
        out = np.empty(stop - start, self.dtype)
        for first in range(start // length * length, stop, length):
            lower, upper = max(start, first), min(stop, first + length)
            out[lower - start : upper - start] = self._chunk(first, length)[lower - first : upper - first]
        return out

    def _chunk(self, first: int, length: int) -> npt.NDArray[Any]:
        """The elements of one chunk; the last chunk of a dataset may be padded."""
        if self._last is None or self._last[0] != first:
            try:
                values = self._inflate(first, length)
            except DAMAGE:  # not stored, or damaged: HDF5 tells which
                values = np.asarray(self._dataset[first : first + length])
            self._last = first, values
        return self._last[1]

    def _inflate(self, first: int, length: int) -> npt.NDArray[Any]:
        skipped, packed = self._dataset.id.read_direct_chunk((first,))
        if skipped:
            raise ValueError("this chunk went round a filter")
        size = length * self.dtype.itemsize
        data = isal_zlib.decompress(packed, bufsize=size)
        if len(data) != size:
            raise ValueError("this chunk has another length")
        if self._shuffled:  # the first bytes of all elements, then the second ones, ...
            columns = np.frombuffer(data, np.uint8).reshape(self.dtype.itemsize, length)
            return np.ascontiguousarray(columns.T).view(self.dtype).ravel()
        return np.frombuffer(data, self.dtype)


def _deflate_shuffle(dataset: h5py.Dataset) -> bool | None:
    """Whether bytes were shuffled before gzip; None where the dataset is kept in another way."""
    if dataset.ndim != 1 or dataset.chunks is None or dataset.dtype.kind not in "iuf":
        return None
    layout: h5py.h5p.PropDCID = dataset.id.get_create_plist()
    filters = [layout.get_filter(number)[0] for number in range(layout.get_nfilters())]
    if layout.get_layout() != h5d.CHUNKED or filters not in (
        [h5z.FILTER_DEFLATE],
        [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE],
    ):
        return None
    return h5z.FILTER_SHUFFLE in filters
