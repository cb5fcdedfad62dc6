"""A folder of zarr, local or remote, through the one door to storage; read only, and nothing outside of the folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from cytoray import storage
from cytoray.corpus.readers.ranges import read_object
from cytoray.errors import CorpusError


class FolderStore(Store):
    """Keys of one listing: what is not in it is absent without a question to the store."""

    supports_writes = supports_deletes = supports_partial_writes = False
    supports_listing = True

    def __init__(self, uri: str, objects: Mapping[str, storage.ObjectInfo]) -> None:
        """``objects`` are all objects of the folder by their key below ``uri``."""
        super().__init__(read_only=True)
        self._uri, self._objects = uri, objects

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FolderStore) and other._uri == self._uri

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """An object or a range of it, None if there is none."""
        if key not in self._objects:
            return None
        info = self._objects[key]
        data = await asyncio.to_thread(read_object, info, *_bounds(byte_range, info.num_bytes))
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several ranges, all at once."""
        return await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))

    async def exists(self, key: str) -> bool:
        """Whether the listing has it."""
        return key in self._objects

    def has(self, key: str) -> bool:
        """Whether the listing has it, for who does not await."""
        return key in self._objects

    async def set(self, key: str, value: Buffer) -> None:
        """Refused: this store is for reading."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Refused: this store is for reading."""
        raise NotImplementedError

    async def list(self) -> AsyncIterator[str]:
        """Every key."""
        for key in self._objects:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that starts with ``prefix``."""
        for key in self._objects:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names right below a folder."""
        folder = prefix.rstrip("/") + "/" if prefix else ""
        names = {key.removeprefix(folder).partition("/")[0] for key in self._objects if key.startswith(folder)}
        for name in sorted(names):
            yield name


def open_zarr(uri: str, objects: dict[str, storage.ObjectInfo]) -> zarr.Group:
    """The root group of a folder, ``objects`` by their key below it; CorpusError if a key leads out of it."""
    for key, info in objects.items():
        if ".." in key.split("/"):
            raise CorpusError(
                f"{uri}: the key {key!r} leads out of the folder.", remedy="Delete that object.", uri=info.uri, key=key
            )
    return zarr.open_group(FolderStore(uri, objects), mode="r")


def _bounds(request: ByteRequest | None, size: int) -> tuple[int | None, int | None]:
    """First byte and the one after the last, of an object of ``size`` bytes."""
    if isinstance(request, RangeByteRequest):
        return request.start, min(request.end, size)
    if isinstance(request, OffsetByteRequest):
        return request.offset, size
    if isinstance(request, SuffixByteRequest):
        return max(0, size - request.suffix), size
    return None, None


def is_zarr(keys: Iterable[str]) -> bool:
    """Whether keys below a folder are those of a zarr group."""
    names: set[Any] = set(keys)
    return bool(names & {"zarr.json", ".zgroup", ".zattrs", ".zmetadata"})
