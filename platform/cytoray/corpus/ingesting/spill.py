"""Spills, between the two passes of an ingest: cells and obs as Arrow batches, one section per group, read by range.

A spill is one object of sections end to end. The offset and CRC-32 of each section are in a record that is written
last, so that a spill without its record counts as never written. CRC-32, which finds every flipped
bit and costs a twentieth of SHA-256: a spill is twice the bytes of its shards and outlives no ingest.
"""

# C cells

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from isal import isal_zlib

from cytoray import storage
from cytoray.corpus.ingesting.gathering import gather
from cytoray.corpus.ingesting.shuffle import SectionIndex, section_places
from cytoray.errors import DigestError
from cytoray.tokens.cells import Int32
from cytoray.tokens.packed import PackedCells

CONTENT = "_content"
CELL_ID = "_cell_id"
SOURCE, SUM = "_place", "_sum"  # in spills only: place of the source in the plan, sum of all values of the cell
READERS = 4  # sections fetched at a time: on an object store the time to the first byte dominates
_STREAMS = ("genes", "values", "large")


def write_sections(uri: str, sections: Sequence[bytes | memoryview | pa.Buffer]) -> SectionIndex:
    """Write sections as one object."""
    borders = [0]
    for section in sections:
        borders.append(borders[-1] + len(section))
    storage.write_bytes(uri, b"".join(sections))
    return SectionIndex(borders=tuple(borders), checks=tuple(isal_zlib.crc32(section) for section in sections))


def read_section(uri: str, index: SectionIndex, section: int) -> bytes:
    """Read and verify one section; an empty one is not fetched."""
    return read_checked(uri, index.borders[section], index.borders[section + 1], index.checks[section])


def read_neighbours(uri: str, index: SectionIndex, sections: range) -> list[bytes]:
    """Read neighbouring sections in one request, each verified."""
    borders = index.borders[sections.start : sections.stop + 1]
    checks = index.checks[sections.start : sections.stop]
    for _ in range(2):
        data = storage.read_bytes(uri, start=borders[0], end=borders[-1])
        parts = [data[start - borders[0] : stop - borders[0]] for start, stop in itertools.pairwise(borders)]
        if all(isal_zlib.crc32(part) == check for part, check in zip(parts, checks, strict=True)):
            return parts
    raise _changed(uri, borders[0], borders[-1])


def read_table(folder: str, item: dict[str, Any], schema: pa.Schema) -> pa.Table:
    """Read the sections that an item places in objects of a folder, in order, as a table."""

    def fetch(place: tuple[str, int, int, int]) -> pa.RecordBatch:
        """Read one section."""
        name, start, stop, check = place
        return from_section(read_checked(storage.join(folder, name), start, stop, check), schema)

    with ThreadPoolExecutor(READERS, "gather") as pool:
        return pa.Table.from_batches(pool.map(fetch, section_places(item)), schema)


def read_checked(uri: str, start: int, stop: int, check: int) -> bytes:
    """Read the bytes ``start`` to ``stop`` of an object; DigestError if their CRC-32 differs from ``check`` twice."""
    for _ in range(2):  # the flip may have been on the wire
        data = storage.read_bytes(uri, start=start, end=stop)
        if isal_zlib.crc32(data) == check:
            return data
    raise _changed(uri, start, stop)


def _changed(uri: str, start: int, stop: int) -> DigestError:
    return DigestError(
        f"{uri}: bytes {start:,} to {stop:,}, which this ingest wrote, have changed.",
        remedy="Delete this object and the one with .json after it, and start the ingest again.",
        uri=uri,
    )


def stream_fields(name: str = "") -> list[pa.Field]:
    """Return the Arrow fields for packed cells: the shard's own, or those of the modality ``name``."""
    return [pa.field(_column(name, stream), pa.large_binary()) for stream in _STREAMS]


def to_arrays(packed: PackedCells) -> list[pa.Array]:
    """Wrap packed cells as the arrays of ``stream_fields``, one value per cell, without a copy."""
    parts = (
        (packed.genes, packed.gene_starts),
        (packed.values, packed.indptr * packed.values.itemsize),
        (packed.large, packed.large_starts * packed.large.itemsize),
    )
    return [
        pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), packed.num_cells, [None, pa.py_buffer(starts), pa.py_buffer(stream)]
        )
        for stream, starts in parts
    ]


def from_table(table: pa.Table, *, counts: bool, name: str = "", gene_table: Int32 | None = None) -> PackedCells:
    """Undo ``to_arrays`` for a table of C cells, numbered by ``gene_table``, that also has the column of cell ids."""
    genes, gene_starts = _stream(table, _column(name, "genes"))
    values, value_starts = _stream(table, _column(name, "values"))
    large, large_starts = _stream(table, _column(name, "large"))
    typed = values if counts else values.view(np.float32)
    return PackedCells(
        genes=genes,
        values=typed,
        large=large.view(np.uint32),
        gene_starts=gene_starts,
        indptr=value_starts // typed.itemsize,
        large_starts=large_starts // 4,
        cell_ids=table.column(CELL_ID).to_numpy(),
        table=gene_table,
    )


def to_section(batch: pa.RecordBatch) -> pa.Buffer:
    """Serialise a batch without its schema."""
    return batch.serialize()


def from_section(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    """Undo ``to_section``."""
    return pa.ipc.read_record_batch(pa.py_buffer(data), schema)


def split_by(table: pa.Table, groups: npt.NDArray[np.integer], num_groups: int) -> list[pa.Buffer]:
    """Split the rows of a table by group (C,), one section each, keeping their order; a group without rows is empty."""
    order = np.argsort(groups, kind="stable")
    borders = np.searchsorted(groups[order], np.arange(num_groups + 1))
    if not len(order):
        return [pa.py_buffer(b"")] * num_groups
    (batch,) = gather(table, order).to_batches()
    nothing = pa.py_buffer(b"")
    return [
        to_section(batch.slice(start, stop - start)) if stop > start else nothing
        for start, stop in itertools.pairwise(borders.tolist())
    ]


def _column(name: str, stream: str) -> str:
    return f"{name}/_{stream}" if name else f"_{stream}"


def _stream(table: pa.Table, column: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the bytes of a binary column end to end, and the offset of each cell's, (C + 1,)."""
    chunks = table.column(column).chunks
    array = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.array([], pa.large_binary())])
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    stream = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return np.require(stream[starts[0] : starts[-1]], requirements="A"), starts - starts[0]
