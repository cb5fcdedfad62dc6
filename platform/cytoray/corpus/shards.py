"""The on-disk format of encoded cells: parquet files read whole or one row group at a time, exact to the count.

One parquet row is a chunk of up to 256 cells (little-endian throughout); eight of them are a row group:

=========  ======  =====================================================================================
column     type    content
=========  ======  =====================================================================================
n          int32   cells in the chunk
cell_ids   binary  n x uint64
nnz        binary  n x uint32, expressed genes of each cell
glen       binary  n x uint32, bytes of each cell in genes
nlarge     binary  n x uint32, entries of each cell in large
genes      binary  gap streams (see ``tokens.packed``), cell after cell, of places in the table of genes
values     binary  counts: one byte per gene, 255 meaning "the next entry of large";
                   expression: one float32 per gene
large      binary  uint32, the counts of 255 and more, in order
bins       binary  one byte per gene, only if bins are stored
=========  ======  =====================================================================================

The table of the genes stands in the file's metadata, base64 of the gap stream of a cell that has them all.
The streams are those of ``PackedCells``: reading copies nothing but what zstd unpacks. docs/corpus-format.md describes
the whole for other languages.
"""

# C cells, N non-zero entries

from __future__ import annotations

import base64
import functools
import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.corpus.manifest import CellFileRecord, RowGroupRecord
from cytoray.errors import CorpusError
from cytoray.tokens.coding import ESCAPE
from cytoray.tokens.packed import PackedCells, with_table

CELLS_PER_CHUNK = 256
CHUNKS_PER_ROW_GROUP = 8
CELLS_PER_ROW_GROUP = CELLS_PER_CHUNK * CHUNKS_PER_ROW_GROUP
FORMAT = "2"
Values = Literal["counts", "expression"]

_BINARY = ("cell_ids", "nnz", "glen", "nlarge", "genes", "values", "large", "bins")
_SCHEMA = pa.schema(
    [pa.field("n", pa.int32(), nullable=False), *(pa.field(name, pa.binary(), nullable=False) for name in _BINARY)]
)


@dataclass(frozen=True)
class EncodedShard:
    """The bytes of a shard file and the facts for its record."""

    data: bytes
    sha256: str
    num_cells: int
    num_entries: int
    row_groups: tuple[RowGroupRecord, ...]
    frame_sha256: str

    def record(self, key: str) -> CellFileRecord:
        """Return the record of this file under ``key``."""
        return CellFileRecord(
            key=key,
            sha256=self.sha256,
            num_bytes=len(self.data),
            num_cells=self.num_cells,
            num_entries=self.num_entries,
            frame_sha256=self.frame_sha256,
            row_groups=self.row_groups,
        )


def encode_shard(packed: PackedCells, *, values: Values) -> EncodedShard:
    """Encode cells, in their order, as one shard file; equal input gives equal bytes."""
    assert (packed.values.dtype == np.uint8) == (values == "counts"), "counts are bytes, expression is float32"
    packed = with_table(packed)
    borders = np.minimum(np.arange(0, packed.num_cells + CELLS_PER_CHUNK, CELLS_PER_CHUNK), packed.num_cells)
    sink = io.BytesIO()
    pq.write_table(
        _chunks(packed, borders, values),
        sink,
        row_group_size=CHUNKS_PER_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
    )
    data = sink.getvalue()
    row_groups = _row_groups(data, packed)
    frame = data[_frame_start(row_groups) :]
    return EncodedShard(
        data,
        hashlib.sha256(data).hexdigest(),
        packed.num_cells,
        len(packed.values),
        row_groups,
        hashlib.sha256(frame).hexdigest(),
    )


def _chunks(packed: PackedCells, borders: npt.NDArray[np.int64], values: Values) -> pa.Table:
    """Build the parquet rows: every stream is cut at the borders of the chunks without a copy."""
    bins = packed.bins if packed.bins is not None else np.empty(0, np.uint8)
    entries = packed.indptr[borders]
    columns = {
        "cell_ids": _binary(packed.cell_ids.astype("<u8"), borders),
        "nnz": _binary(np.diff(packed.indptr).astype("<u4"), borders),
        "glen": _binary(np.diff(packed.gene_starts).astype("<u4"), borders),
        "nlarge": _binary(np.diff(packed.large_starts).astype("<u4"), borders),
        "genes": _binary(packed.genes, packed.gene_starts[borders]),
        "values": _binary(packed.values.astype("<f4") if values == "expression" else packed.values, entries),
        "large": _binary(packed.large.astype("<u4"), packed.large_starts[borders]),
        "bins": _binary(bins, entries if packed.bins is not None else np.zeros_like(borders)),
    }
    counts = pa.array(np.diff(borders), pa.int32())
    assert packed.table is not None, "with_table makes one"
    metadata = {
        "cytoray.format": FORMAT,
        "cytoray.values": values,
        "cytoray.bins": "on_read" if packed.bins is None else "stored",
        "cytoray.genes": _table_to_text(packed.table),
    }
    return pa.table([counts, *columns.values()], schema=_SCHEMA.with_metadata(metadata))


def _binary(stream: npt.NDArray[Any], borders: npt.NDArray[np.int64]) -> pa.ChunkedArray:
    """Build a binary column whose values are the stream's items between neighbouring borders."""
    offsets, data = borders * stream.itemsize, pa.py_buffer(np.ascontiguousarray(stream))
    arrays = []
    for start in range(0, len(offsets) - 1, CHUNKS_PER_ROW_GROUP):  # 32-bit offsets suffice for a row group
        cut = offsets[start : start + CHUNKS_PER_ROW_GROUP + 1]
        part = data.slice(int(cut[0]), int(cut[-1] - cut[0]))
        inside = pa.py_buffer((cut - cut[0]).astype(np.int32))
        arrays.append(pa.BinaryArray.from_buffers(pa.binary(), len(cut) - 1, [None, inside, part]))
    return pa.chunked_array(arrays, pa.binary())


def _row_groups(data: bytes, packed: PackedCells) -> tuple[RowGroupRecord, ...]:
    """Locate the row groups of an encoded file and compute their digests."""
    footer = pq.read_metadata(pa.BufferReader(data))
    starts = [footer.row_group(group).column(0).data_page_offset for group in range(footer.num_row_groups)]
    if not starts:
        return ()
    last = footer.row_group(len(starts) - 1)
    sizes = [last.column(column).total_compressed_size for column in range(last.num_columns)]
    borders = [0, *starts[1:], starts[-1] + sum(sizes)]
    records = []
    for group, (start, stop) in enumerate(itertools.pairwise(borders)):
        first = group * CELLS_PER_ROW_GROUP
        beyond = min(first + CELLS_PER_ROW_GROUP, packed.num_cells)
        records.append(
            RowGroupRecord(
                offset=start,
                num_bytes=stop - start,
                num_cells=beyond - first,
                num_entries=int(packed.indptr[beyond] - packed.indptr[first]),
                sha256=hashlib.sha256(memoryview(data)[start:stop]).hexdigest(),
            )
        )
    return tuple(records)


def _frame_start(row_groups: Sequence[RowGroupRecord]) -> int:
    """Return the offset of the footer."""
    return row_groups[-1].offset + row_groups[-1].num_bytes if row_groups else 0


class ShardReader:
    """One shard file, read by row group; threads may share it."""

    def __init__(self, uri: str, record: CellFileRecord) -> None:
        self.uri = uri
        self.record = record

    def read_group(self, group: int) -> PackedCells:
        """Read and verify the cells of one row group: one ranged read, and one of the footer the first time.

        Raises DigestError if the bytes are not those that were written.
        """
        part, footer = self.record.row_groups[group], self._footer()
        data = storage.read_bytes(self.uri, start=part.offset, end=part.offset + part.num_bytes, sha256=part.sha256)
        source = pa.PythonFile(_Window(data, part.offset, self.record.num_bytes), mode="r")
        with pq.ParquetFile(source, metadata=footer) as file:
            return _decode(file.read_row_group(group, use_threads=False), uri=self.uri)

    def genes(self) -> npt.NDArray[np.int32]:
        """Return the table of genes, ids ascending, shape (G,): those in the file, and possibly more."""
        return _table_from_text(self._footer().metadata[b"cytoray.genes"])

    def _footer(self) -> pq.FileMetaData:
        record = self.record
        return _load_footer(self.uri, _frame_start(record.row_groups), record.num_bytes, record.frame_sha256)


def open_shard(uri: str, record: CellFileRecord) -> ShardReader:
    """Return a reader of the row groups of the shard at ``uri``; nothing is read yet."""
    return ShardReader(uri, record)


def read_shard(uri: str, record: CellFileRecord) -> PackedCells:
    """Read a whole shard, verified."""
    return decode_shard(storage.read_bytes(uri, sha256=record.sha256), uri=uri)


def decode_shard(data: bytes, *, uri: str = "") -> PackedCells:
    """Decode the bytes of a shard file; CorpusError if they are not of this format."""
    return _decode(pq.read_table(pa.BufferReader(data), use_threads=False), uri=uri)


@functools.lru_cache(maxsize=4096)  # a footer takes some 10 kB
def _load_footer(uri: str, start: int, stop: int, sha256: str) -> pq.FileMetaData:
    """Load and verify the footer of a shard file."""
    return pq.read_metadata(pa.BufferReader(storage.read_bytes(uri, start=start, end=stop, sha256=sha256)))


class _Window(io.RawIOBase):
    """A file of which only some bytes are in memory, for a reader that reads nothing else."""

    def __init__(self, data: bytes, offset: int, num_bytes: int) -> None:
        self._data, self._offset, self._num_bytes = memoryview(data), offset, num_bytes
        self._place = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def size(self) -> int:
        """Return the number of bytes of the whole file."""
        return self._num_bytes

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in the whole file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._num_bytes}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """Return the position in the whole file."""
        return self._place

    def read(self, size: int | None = -1) -> memoryview:
        """Return bytes from the current position without a copy; bytes outside the window are a programming error."""
        stop = self._num_bytes if size is None or size < 0 else min(self._place + size, self._num_bytes)
        start, self._place = self._place, stop
        assert start >= self._offset, "bytes before the window are read"
        assert stop <= self._offset + len(self._data), "bytes behind the window are read"
        return self._data[start - self._offset : stop - self._offset]


def _decode(table: pa.Table, *, uri: str) -> PackedCells:
    """Decode parquet rows as cells."""
    metadata = table.schema.metadata or {}
    if metadata.get(b"cytoray.format") != FORMAT.encode():
        raise CorpusError(
            f"{uri or 'This file'} is not a shard of a format that this version of cytoray knows.",
            remedy="Ingest the corpus again.",
        )
    counts = metadata[b"cytoray.values"] == b"counts"
    stored = metadata[b"cytoray.bins"] == b"stored"
    return PackedCells(
        genes=_stream(table, "genes", np.uint8),
        values=_stream(table, "values", np.uint8 if counts else np.float32),
        large=_stream(table, "large", np.uint32),
        gene_starts=_starts(_stream(table, "glen", np.uint32)),
        indptr=_starts(_stream(table, "nnz", np.uint32)),
        large_starts=_starts(_stream(table, "nlarge", np.uint32)),
        cell_ids=_stream(table, "cell_ids", np.uint64),
        bins=_stream(table, "bins", np.uint8) if stored else None,
        table=_table_from_text(metadata[b"cytoray.genes"]),
    )


def _table_to_text(table: npt.NDArray[np.int32]) -> str:
    """Encode ascending gene ids as text."""
    gaps = np.diff(table, prepend=-1) - 1
    ends = np.cumsum(gaps // ESCAPE + 1)
    stream = np.full(int(ends[-1]) if len(ends) else 0, ESCAPE, np.uint8)
    stream[ends - 1] = gaps % ESCAPE
    return base64.b64encode(stream.tobytes()).decode()


@functools.lru_cache(maxsize=1024)  # one array per table: cells of equal tables can be joined as they are
def _table_from_text(text: bytes) -> npt.NDArray[np.int32]:
    """Undo ``_table_to_text``."""
    stream = np.frombuffer(base64.b64decode(text), np.uint8)
    ends = stream != ESCAPE
    table: npt.NDArray[np.int32] = (np.cumsum(stream.astype(np.int64) + ends)[ends] - 1).astype(np.int32)
    return table


def _stream(table: pa.Table, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return a binary column end to end as little-endian numbers, without a copy if it is one piece."""
    parts = []
    for array in table.column(name).chunks:
        _, offsets, data = array.buffers()
        if data is None or len(array) == 0:
            continue
        start, stop = np.frombuffer(offsets, np.int32)[[array.offset, array.offset + len(array)]]
        parts.append(np.frombuffer(data, np.uint8)[start:stop])
    stream = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.uint8), *parts])
    return np.require(stream.view(np.dtype(dtype).newbyteorder("<")), dtype, ["ALIGNED"])


def _starts(lengths: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Return the offset of each cell's part of a stream and the end of the last, shape (C + 1,)."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts
