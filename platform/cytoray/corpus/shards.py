"""The on-disk format of a corpus: parquet files of encoded chunks, small enough to read whole, exact to the count.

One parquet row is a chunk of up to 256 cells (little-endian throughout):

=========  ======  =====================================================================================
column     type    content
=========  ======  =====================================================================================
n          int32   cells in the chunk
cell_ids   binary  n x uint64
nnz        binary  n x uint32, expressed genes of each cell
genes      binary  gap-coded gene ids: gap = id - previous id - 1 (previous = -1 at the start of a cell);
                   while gap >= 255 a byte 255 and gap -= 255; then the byte gap
values     binary  counts: one byte a gene, 255 meaning "the next entry of large";
                   expression: one float32 a gene
large      binary  uint32, the counts of 255 and more, in order
bins       binary  one byte a gene, only where bins are stored
=========  ======  =====================================================================================

The file's metadata names the variant: ``cytoray.values`` is ``counts`` or ``expression``.
"""

# C cells, N non-zero entries

from __future__ import annotations

import functools
import io
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cytoray import storage
from cytoray.errors import CorpusError
from cytoray.tokens.cells import SparseCells

CELLS_PER_CHUNK = 256
CHUNKS_PER_ROW_GROUP = 8
FORMAT = "1"
ESCAPE = 255
Values = Literal["counts", "expression"]
Bins = npt.NDArray[np.int16]

_COLUMNS = [pa.field("n", pa.int32(), nullable=False)] + [
    pa.field(name, pa.binary(), nullable=False) for name in ("cell_ids", "nnz", "genes", "values", "large", "bins")
]


@dataclass(frozen=True)
class ShardCells:
    """What a shard decodes to: cells, and their stored bins (N,) if the corpus keeps them."""

    cells: SparseCells
    bins: Bins | None

    @property
    def binned(self) -> SparseCells:
        """The same cells with their stored bins in the place of the values."""
        assert self.bins is not None, "this shard stores no bins"
        return replace(self.cells, values=self.bins.astype(np.float32))


def encode_shard(cells: SparseCells, *, values: Values, bins: Bins | None = None) -> bytes:
    """Encode cells, in their order, as the bytes of one shard file; equal input gives equal bytes."""
    rows = []
    for start in range(0, cells.num_cells, CELLS_PER_CHUNK):
        chunk = cells.take(np.arange(start, min(start + CELLS_PER_CHUNK, cells.num_cells)))
        entries = slice(int(cells.indptr[start]), int(cells.indptr[start]) + len(chunk.values))
        rows.append(_encode_chunk(chunk, values, None if bins is None else bins[entries]))
    schema = pa.schema(_COLUMNS, metadata={"cytoray.format": FORMAT, "cytoray.values": values})
    table = pa.Table.from_pylist(rows, schema=schema)
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=CHUNKS_PER_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=False,
        write_statistics=False,
    )
    return sink.getvalue()


def decode_shard(data: bytes) -> ShardCells:
    """Decode the bytes of a shard file."""
    table = pq.read_table(pa.BufferReader(data))
    metadata = table.schema.metadata or {}
    if metadata.get(b"cytoray.format") != FORMAT.encode():
        raise CorpusError("This file is not a cytoray shard of a known format.", remedy="Ingest the corpus again.")
    values: Values = "counts" if metadata[b"cytoray.values"] == b"counts" else "expression"
    chunks = [_decode_chunk(row, values) for row in table.to_pylist()]
    stored = [bins for _, bins in chunks if bins is not None]
    cells = SparseCells.concatenate([cells for cells, _ in chunks])
    return ShardCells(cells, np.concatenate(stored) if stored else None)


@functools.lru_cache(maxsize=4)
def load_shard(uri: str, sha256: str) -> ShardCells:
    """Read and verify a shard; the last few stay in memory, since neighbouring steps read the same ones."""
    return decode_shard(storage.read_bytes(uri, sha256=sha256))


def _encode_chunk(cells: SparseCells, values: Values, bins: Bins | None) -> dict[str, Any]:
    """One parquet row."""
    narrow, large = _encode_values(cells.values, values)
    return {
        "n": cells.num_cells,
        "cell_ids": cells.cell_ids.astype("<u8").tobytes(),
        "nnz": cells.num_genes_per_cell.astype("<u4").tobytes(),
        "genes": _encode_gaps(cells),
        "values": narrow,
        "large": large,
        "bins": b"" if bins is None else bins.astype(np.uint8).tobytes(),
    }


def _decode_chunk(row: dict[str, Any], values: Values) -> tuple[SparseCells, Bins | None]:
    """Undo ``_encode_chunk``."""
    nnz = np.frombuffer(row["nnz"], "<u4").astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(nnz)])
    cells = SparseCells(
        _decode_gaps(row["genes"], indptr),
        _decode_values(row["values"], row["large"], values),
        indptr,
        np.frombuffer(row["cell_ids"], "<u8").astype(np.uint64),
    )
    bins = np.frombuffer(row["bins"], np.uint8).astype(np.int16) if row["bins"] else None
    return cells, bins


def _encode_gaps(cells: SparseCells) -> bytes:
    """Gap-code ascending gene ids, each cell from -1."""
    previous = np.concatenate([[-1], cells.gene_ids[:-1]]).astype(np.int64)
    starts = cells.indptr[:-1][cells.num_genes_per_cell > 0]
    previous[starts] = -1
    gaps = cells.gene_ids - previous - 1
    assert (gaps >= 0).all(), "gene ids must ascend within a cell"
    ends = np.cumsum(gaps // ESCAPE + 1)
    stream = np.full(ends[-1] if len(ends) else 0, ESCAPE, np.uint8)
    stream[ends - 1] = gaps % ESCAPE
    return stream.tobytes()


def _decode_gaps(data: bytes, indptr: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Undo ``_encode_gaps``: a running sum of all bytes, less the sum at the start of each gene's cell."""
    stream = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(stream != ESCAPE)
    running = np.cumsum(stream.astype(np.int64) + (stream != ESCAPE))[ends]  # each gene advances by gap + 1
    before = np.concatenate([[0], running])[indptr[:-1]]
    gene_ids: npt.NDArray[np.int32] = (running - np.repeat(before, np.diff(indptr)) - 1).astype(np.int32)
    return gene_ids


def _encode_values(values: npt.NDArray[np.float32], kind: Values) -> tuple[bytes, bytes]:
    """Counts as bytes with large ones aside, or expression as float32."""
    if kind == "expression":
        return values.astype("<f4").tobytes(), b""
    counts = values.astype(np.int64)
    if (counts != values).any() or (counts < 1).any() or (counts >= 2**32).any():
        raise CorpusError(
            "A count is not an integer from 1 to 4,294,967,295.", remedy="Check the matrix of this source."
        )
    return np.minimum(counts, ESCAPE).astype(np.uint8).tobytes(), counts[counts >= ESCAPE].astype("<u4").tobytes()


def _decode_values(data: bytes, large: bytes, kind: Values) -> npt.NDArray[np.float32]:
    """Undo ``_encode_values``."""
    if kind == "expression":
        return np.frombuffer(data, "<f4").astype(np.float32)
    values = np.frombuffer(data, np.uint8).astype(np.float32)
    values[values == ESCAPE] = np.frombuffer(large, "<u4")
    return values
