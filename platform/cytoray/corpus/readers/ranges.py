"""A remote object as a seekable file, for HDF5: blocks of it are kept, and reading on fetches more of them at once."""

from __future__ import annotations

import contextlib
import gc
import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from cytoray import storage

BLOCK_BYTES = 2**20
# HDF5 jumps between its tables and the data: one block is fetched at a jump, twice as many each time reading goes on.
MAX_AHEAD = 16
BLOCKS_A_REQUEST = 4  # a request costs the client 3 ms of CPU, as much as 4 MiB take to arrive
KEPT_BLOCKS = 64


def open_object(info: storage.ObjectInfo) -> BinaryIO:
    """A seekable file of one object, local or remote; what the store does wrong stays a StorageError."""
    if not storage.is_remote(info.uri):
        return storage.open_read(info.uri)
    return cast("BinaryIO", io.BufferedReader(RangeFile(info.uri, info.num_bytes), BLOCK_BYTES))


def open_parquet(file: BinaryIO) -> pq.ParquetFile:
    """A parquet file that is read as far as it is asked for: by default pyarrow fetches all row groups ahead."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=BLOCK_BYTES)


class RangeFile(io.RawIOBase):
    """The bytes of one remote object, at most ``KEPT_BLOCKS`` blocks of them in memory."""

    def __init__(self, uri: str, num_bytes: int) -> None:
        self._uri, self._size = uri, num_bytes
        self._place = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._ahead, self._next = 1, -1

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place counted from the start, from here, or from the end."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

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
