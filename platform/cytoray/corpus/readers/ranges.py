"""A remote object as a seekable file, for HDF5: blocks of it are kept, and reading on fetches more of them at once."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from cytoray import storage

BLOCK_BYTES = 2**20
# HDF5 jumps between its tables and the data: one block is fetched at a jump, twice as many each time reading goes on.
MAX_AHEAD = 16
BLOCKS_A_REQUEST = 4  # a request costs the client 3 ms of CPU, as much as 4 MiB take to arrive
KEPT_BLOCKS = 64


class Scratch:
    """A temporary file without a name: it is gone as soon as nothing refers to it, however the process ends."""

    def __init__(self) -> None:
        file = tempfile.TemporaryFile(prefix="cytoray-unpacked-")  # noqa: SIM115 - closed by the next line
        weakref.finalize(self, file.close)
        self.write, self._flush, self._tell = file.write, file.flush, file.tell
        self.descriptor = file.fileno()

    def finished(self) -> int:
        """Make readable all that was written, and return its size."""
        self._flush()
        return self._tell()


@dataclass(frozen=True, kw_only=True)
class UnpackedObject(storage.ObjectInfo):
    """An object whose bytes lie in a temporary file of this process; ``uri`` names the place they came from."""

    file: Scratch
    start: int = 0


def open_object(info: storage.ObjectInfo) -> BinaryIO:
    """Open one object as a seekable file, local, remote or unpacked; errors of the store stay StorageErrors."""
    if isinstance(info, UnpackedObject):
        return cast("BinaryIO", io.BufferedReader(UnpackedFile(info), BLOCK_BYTES))
    if not storage.is_remote(info.uri):
        return storage.open_read(info.uri)
    return cast("BinaryIO", io.BufferedReader(RangeFile(info.uri, info.num_bytes), BLOCK_BYTES))


def read_object(info: storage.ObjectInfo, start: int | None = None, end: int | None = None) -> bytes:
    """Read the bytes ``start`` to ``end`` of one object."""
    if not isinstance(info, UnpackedObject):
        return storage.read_bytes(info.uri, start=start, end=end)
    first, last = start or 0, info.num_bytes if end is None else min(end, info.num_bytes)
    return os.pread(info.file.descriptor, max(0, last - first), info.start + first)


def open_parquet(file: BinaryIO) -> pq.ParquetFile:
    """A parquet file that is read as far as it is asked for: by default pyarrow fetches all row groups ahead."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES)


class _SeekableFile(io.RawIOBase):
    """A file of known size that is only read."""

    def __init__(self, num_bytes: int) -> None:
        self._size, self._place = num_bytes, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the place where the next read starts."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the start, from here, or from the end."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place


class UnpackedFile(_SeekableFile):
    """The bytes of an unpacked object."""

    def __init__(self, info: UnpackedObject) -> None:
        super().__init__(info.num_bytes)
        self._info = info

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._place))
        filled = os.preadv(self._info.file.descriptor, [view[:wanted]], self._info.start + self._place)
        self._place += filled
        return filled


class RangeFile(_SeekableFile):
    """The bytes of one remote object, at most ``KEPT_BLOCKS`` blocks of them in memory."""

    def __init__(self, uri: str, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self._uri = uri
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead, self._next = 1, -1

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._place))
        filled = 0
        while filled < wanted:
            block, skip = divmod(self._place + filled, BLOCK_BYTES)
            part = self._block(block, upto=(self._place + wanted - 1) // BLOCK_BYTES)[skip : skip + wanted - filled]
            view[filled : filled + len(part)] = part
            filled += len(part)
        self._place += filled
        return filled

    def _block(self, block: int, *, upto: int) -> bytes:
        """One block; where it is not here it is fetched with those that will be asked for next."""
        if block not in self._blocks:
            self._ahead = min(2 * self._ahead, MAX_AHEAD) if block == self._next else 1
            stop = min(block + max(self._ahead, min(upto - block + 1, MAX_AHEAD)), -(-self._size // BLOCK_BYTES))
            self._fetch(block, stop)
            self._next = stop
            while len(self._blocks) > max(KEPT_BLOCKS, stop - block):
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def _fetch(self, first: int, stop: int) -> None:
        """Get blocks ``first`` to ``stop``, several at a request and all requests at once."""
        starts = [block * BLOCK_BYTES for block in range(first, stop, BLOCKS_A_REQUEST)]
        end = min(stop * BLOCK_BYTES, self._size)
        ranges = [(start, min(start + BLOCKS_A_REQUEST * BLOCK_BYTES, end)) for start in starts]
        with _no_collection():
            parts = storage.read_ranges(self._uri, ranges)
        for start, data in zip(starts, parts, strict=True):
            for skip in range(0, len(data), BLOCK_BYTES):
                self._blocks[(start + skip) // BLOCK_BYTES] = data[skip : skip + BLOCK_BYTES]


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Hold back the collection of cyclic garbage.

    HDF5 keeps h5py's global lock while it waits for these bytes, and another thread fetches them: if that one came to
    collect an h5py object, it would wait for the lock, and both for ever.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
