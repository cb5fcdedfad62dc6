"""Read by row what a file does not store by row: compressed columns, and entries in any order.

The entries are read once, front to back, and put into a temporary file, sorted by ranges of ``BUCKET_ROWS`` rows within
each stretch; rows are then assembled from the few ranges they touch. Memory stays flat: a stretch of
the entries, then one range of rows. The file takes 8 bytes per entry and those of its value. It is kept while the
process lives, so that later reads of the same source find it, and has no name: it is gone with the process.
"""

# N entries

from __future__ import annotations

import errno
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.corpus.readers.problems import no_space
from cytoray.corpus.readers.rows import Array, RawRows, plain_numbers

STRETCH_ENTRIES = 2**21
BUCKET_ROWS = 2_048
KEPT_FILES = 2  # a task reads one source; each may take as much disk as the unpacked source


@dataclass(frozen=True)
class Entries:
    """Some entries of a matrix, in any order."""

    rows: npt.NDArray[Any]  # (N,) integers
    columns: npt.NDArray[Any]  # (N,) integers
    values: npt.NDArray[Any]  # (N,)


class Buckets:
    """Entries of a matrix, in a temporary file by range of rows."""

    def __init__(self, stretches: Iterator[Entries]) -> None:
        self._file = tempfile.TemporaryFile(prefix="cytoray-rows-")  # noqa: SIM115 - lives as long as the object
        weakref.finalize(self, self._file.close)
        self._segments: dict[int, list[tuple[int, int]]] = {}  # by range of rows: first entry in the file, how many
        self._dtype: np.dtype[Any] | None = None
        self._last: tuple[int, Entries] | None = None
        self.num_entries = 0
        try:
            for stretch in stretches:
                self._add(stretch)
            self._file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise no_space("to sort a matrix by cell") from error

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``, in order of row; within a row in the order in which entries came."""
        parts = [self._bucket(number) for number in range(start // BUCKET_ROWS, -(-stop // BUCKET_ROWS))]
        chosen = [(part.rows >= start) & (part.rows < stop) for part in parts]
        pairs = list(zip(parts, chosen, strict=True))
        nothing = np.empty(0, np.int32)
        rows = np.concatenate([nothing, *(part.rows[keep] for part, keep in pairs)]) - start
        columns = np.concatenate([nothing, *(part.columns[keep] for part, keep in pairs)])
        values = [part.values[keep] for part, keep in pairs]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=stop - start))]).astype(np.int64)
        return RawRows(np.concatenate([np.empty(0, self._record()["value"]), *values]), columns, indptr)

    def _add(self, stretch: Entries) -> None:
        """Append a stretch, sorted by range of rows."""
        values = plain_numbers(stretch.values)
        if self._dtype is None:
            self._dtype = values.dtype
        if not len(values):
            return
        buckets = _narrow(stretch.rows // BUCKET_ROWS)
        order = np.argsort(buckets, kind="stable")
        record = np.empty(len(values), self._record())
        record["row"], record["column"] = stretch.rows[order], stretch.columns[order]
        record["value"] = values[order]
        self._file.write(record.tobytes())
        numbers, starts, counts = np.unique(buckets[order], return_index=True, return_counts=True)
        for number, start, count in zip(numbers.tolist(), starts.tolist(), counts.tolist(), strict=True):
            self._segments.setdefault(number, []).append((self.num_entries + start, count))
        self.num_entries += len(values)

    def _bucket(self, number: int) -> Entries:
        """The entries of one range of rows, sorted by row."""
        if self._last is None or self._last[0] != number:
            kind = self._record()
            parts = [np.empty(0, kind)]
            for first, count in self._segments.get(number, ()):
                self._file.seek(first * kind.itemsize)
                parts.append(np.frombuffer(self._file.read(count * kind.itemsize), kind))
            record = np.concatenate(parts)
            order = np.argsort(_narrow(record["row"] % BUCKET_ROWS), kind="stable")
            self._last = number, Entries(*(record[name][order] for name in ("row", "column", "value")))
        return self._last[1]

    def _record(self) -> np.dtype[Any]:
        return np.dtype([("row", np.int32), ("column", np.int32), ("value", self._dtype or np.float32)])


_kept: OrderedDict[tuple[str, ...], Buckets] = OrderedDict()


def keep_buckets(key: tuple[str, ...], make: Callable[[], Buckets]) -> Buckets:
    """Return the buckets of a matrix (``key``: its file, version and name), made on first use in a process."""
    if key not in _kept:
        _kept[key] = make()
        while len(_kept) > KEPT_FILES:
            _kept.popitem(last=False)  # its temporary file goes with it
    _kept.move_to_end(key)
    return _kept[key]


class TurnedRows:
    """Rows of a matrix whose entries are stored in another order."""

    def __init__(self, buckets: Callable[[], Buckets], *, shape: tuple[int, int], num_entries: int) -> None:
        """``buckets`` returns the sorted matrix, made on first use; see ``keep_buckets``."""
        self.shape = shape
        self.num_entries: int | None = num_entries
        self._buckets = buckets

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``; the first call reads the whole matrix once."""
        return self._buckets().read(start, stop)

    def sample_values(self) -> npt.NDArray[Any] | None:
        """Return None: no value is known without reading all."""
        return None


class CompressedColumns(TurnedRows):
    """A CSC matrix whose three arrays are in a file."""

    def __init__(
        self, values: Array, rows: Array, indptr: Array, *, shape: tuple[int, int], key: tuple[str, ...]
    ) -> None:
        """Raises ValueError if the three arrays and the shape do not agree."""

        def buckets() -> Buckets:
            """Turn the matrix, or return what was turned before."""
            return keep_buckets(key, lambda: Buckets(self._stretches()))

        super().__init__(buckets, shape=shape, num_entries=int(values.shape[0]))
        self._values, self._rows, self._indptr = values, rows, indptr
        if values.shape != rows.shape or len(values.shape) != 1:
            raise ValueError(f"data has shape {values.shape}, indices {rows.shape}")
        if indptr.shape != (shape[1] + 1,):
            raise ValueError(f"indptr has shape {indptr.shape}, but there are {shape[1]:,} columns")

    def sample_values(self) -> npt.NDArray[Any]:
        """Values of twelve stretches from the first to the last."""
        count = int(self._values.shape[0])
        starts = np.linspace(0, max(0, count - 4_096), 12).astype(int).tolist()
        return np.concatenate([np.asarray(self._values[start : start + 4_096]) for start in sorted(set(starts))])

    def _stretches(self) -> Iterator[Entries]:
        """All entries, column by column."""
        indptr = np.asarray(self._indptr[:]).astype(np.int64)
        count = int(self._values.shape[0])
        if (np.diff(indptr) < 0).any() or indptr[0] != 0 or indptr[-1] != count:
            raise ValueError("the column pointers (indptr) decrease, or do not end at the last entry")
        for start in range(0, count, STRETCH_ENTRIES):
            stop = min(start + STRETCH_ENTRIES, count)
            rows = np.asarray(self._rows[start:stop])
            check_range(rows, self.shape[0], "row")
            lengths = np.diff(np.clip(indptr, start, stop)).astype(np.int64)
            columns = np.repeat(np.arange(self.shape[1], dtype=np.int32), lengths)
            yield Entries(rows, columns, np.asarray(self._values[start:stop]))


def _narrow(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Numbers in 16 bits if they fit: numpy sorts these by radix, five times as fast."""
    return numbers.astype(np.uint16) if len(numbers) and numbers.max() < 2**16 else numbers


def check_range(indices: npt.NDArray[Any], size: int, what: str) -> None:
    """Raise ValueError unless all ``indices`` are integers of 0 to ``size`` - 1."""
    if indices.dtype.kind not in "iu":
        raise ValueError(f"the {what} indices are not integers but {indices.dtype}")
    if len(indices) and (indices.min() < 0 or indices.max() >= size):
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise ValueError(f"a {what} index is {wrong:,}, but there are {size:,} {what}s")
