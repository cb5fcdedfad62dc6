"""AnnData files written piece by piece: a CSR matrix that grows, a table whose columns come one after another."""

# C cells, N non-zero entries

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import zarr
from anndata.io import write_elem

CHUNK = 65_536  # elements; some 44 cells
CHUNKS_PER_SHARD = 256  # of a zarr array: 64 MB of values before compression


@contextlib.contextmanager
def open_target(path: Path, *, as_zarr: bool) -> Iterator[Any]:
    """Open an empty AnnData file or group for writing."""
    if as_zarr:
        group = zarr.open_group(path, mode="w", zarr_format=3)
        group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        with anndata.settings.override(auto_shard_zarr_v3=False):  # columns of obs are small; unset, it warns
            yield group
        return
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        yield file


class CsrWriter:
    """A CSR matrix of unknown length."""

    def __init__(self, target: Any, key: str, *, num_columns: int, counts: bool, as_zarr: bool) -> None:
        self._num_columns = num_columns
        self._group = target.require_group(key)
        kind = np.uint32 if counts else np.float32
        make = _ZarrColumn if as_zarr else _HdfColumn
        self._data, self._indices = make(self._group, "data", kind), make(self._group, "indices", np.int32)
        self._indptr = make(self._group, "indptr", np.int64)
        self._indptr.add(np.zeros(1, np.int64))
        self._num_cells = self._num_entries = 0

    def add(self, values: npt.NDArray[Any], columns: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> None:
        """Add C rows: their N values and columns end to end, and the entries of each row (C,)."""
        self._data.add(values)
        self._indices.add(columns)
        self._indptr.add(self._num_entries + np.cumsum(lengths))
        self._num_entries += len(values)
        self._num_cells += len(lengths)

    def close(self) -> None:
        """Write the remaining values and the shape."""
        for column in (self._data, self._indices, self._indptr):
            column.close()
        shape: Any = [self._num_cells, self._num_columns]
        if isinstance(self._group, h5py.Group):
            shape = np.array(shape, np.int64)
        self._group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})


class _Column:
    """An array that grows at its end by whole pieces."""

    def __init__(self, piece: int, kind: type[np.generic]) -> None:
        self._piece, self._kind = piece, kind
        self._waiting: list[npt.NDArray[Any]] = []
        self._num_waiting = 0

    def add(self, values: npt.NDArray[Any]) -> None:
        """Add values at the end."""
        self._waiting.append(values.astype(self._kind, copy=False))
        self._num_waiting += len(values)
        if self._num_waiting >= self._piece:
            joined = np.concatenate(self._waiting)
            whole = len(joined) - len(joined) % self._piece
            self._append(joined[:whole])
            self._waiting, self._num_waiting = [joined[whole:]], len(joined) - whole

    def close(self) -> None:
        """Write the remaining values."""
        if self._num_waiting:
            self._append(np.concatenate(self._waiting))
        self._waiting, self._num_waiting = [], 0

    def _append(self, values: npt.NDArray[Any]) -> None:
        raise NotImplementedError


class _HdfColumn(_Column):
    def __init__(self, group: Any, name: str, kind: type[np.generic]) -> None:
        super().__init__(CHUNK * 16, kind)
        self._array = group.create_dataset(
            name, shape=(0,), maxshape=(None,), chunks=(CHUNK,), dtype=kind, compression="gzip", compression_opts=1
        )

    def _append(self, values: npt.NDArray[Any]) -> None:
        start = self._array.shape[0]
        self._array.resize((start + len(values),))
        self._array[start:] = values


class _ZarrColumn(_Column):
    def __init__(self, group: Any, name: str, kind: type[np.generic]) -> None:
        shard = CHUNK * CHUNKS_PER_SHARD
        super().__init__(shard, kind)
        self._array = group.create_array(name, shape=(0,), chunks=(CHUNK,), shards=(shard,), dtype=kind)

    def _append(self, values: npt.NDArray[Any]) -> None:
        start = self._array.shape[0]
        self._array.resize((start + len(values),))
        self._array[start:] = values


def write_frame(target: Any, key: str, index: npt.NDArray[Any], columns: Mapping[str, Any]) -> None:
    """Write a table as AnnData does; a column may be a function that makes it, called just before it is written."""
    group = target.require_group(key)
    write_elem(group, "_index", index.astype(object))
    for name, column in columns.items():
        write_elem(group, name, column() if callable(column) else column)
    order: Any = list(columns)
    if isinstance(group, h5py.Group):
        order = np.array(order, h5py.string_dtype())
    group.attrs.update(
        {"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index", "column-order": order}
    )
