"""Gather rows of a table of packed cells in a new order, in memory that costs few page faults."""

# C cells taken, B bytes of a stream

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytoray.tokens.cells import Int64
from cytoray.tokens.compiling import as_input, compiled

UInt8 = npt.NDArray[np.uint8]


def gather(table: pa.Table, rows: npt.NDArray[np.integer]) -> pa.Table:
    """Return the rows (C,) of ``table`` in that order, each column in one piece.

    Binary columns, which are nearly all of the bytes, go into NumPy's memory: NumPy asks for huge pages, Arrow does
    not, and its page faults take several times as long as the copy.
    """
    places: Int64 = rows.astype(np.int64, copy=False)
    columns = [
        _gather_streams(column.chunks, places)
        if pa.types.is_large_binary(column.type)
        else column.take(pa.array(places)).combine_chunks()
        for column in table.columns
    ]
    return pa.table(columns, schema=table.schema)


def _gather_streams(chunks: Sequence[pa.LargeBinaryArray], rows: Int64) -> pa.LargeBinaryArray:
    """Return the values at ``rows`` (C,) of a binary column without nulls."""
    parts = [_buffers(chunk) for chunk in chunks]
    lengths = np.concatenate([np.empty(0, np.int64), *(np.diff(starts) for _, starts in parts)])
    ends = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths[rows], out=ends[1:])
    target = np.empty(int(ends[-1]), np.uint8)
    owners = np.searchsorted(np.cumsum([len(chunk) for chunk in chunks]), rows, side="right")
    first = 0
    for owner, (stream, starts) in enumerate(parts):
        places = np.flatnonzero(owners == owner) if len(parts) > 1 else np.arange(len(rows))
        inputs = (as_input(stream, np.uint8), as_input(starts, np.int64), as_input(rows[places] - first, np.int64))
        _copy(*inputs, as_input(ends[places], np.int64), target)
        first += len(starts) - 1
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(target)]
    )


def _buffers(array: pa.LargeBinaryArray) -> tuple[UInt8, Int64]:
    """Return the bytes (B,) of a binary array, and the start of each value and the end of the last in them."""
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8), starts


@compiled
def _copy(stream: UInt8, starts: Int64, rows: Int64, places: Int64, target: UInt8) -> None:  # pragma: no cover
    """Copy the values at ``rows`` of ``stream`` to ``places`` (C,) in ``target``."""
    for number in range(rows.size):
        source = stream[starts[rows[number]] : starts[rows[number] + 1]]
        part = target[places[number] : places[number] + source.size]
        for place in range(source.size):  # assigning to a slice is five times slower
            part[place] = source[place]
