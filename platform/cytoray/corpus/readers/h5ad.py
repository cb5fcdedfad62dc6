"""AnnData files: h5ad and zarr, which hold the same tree of groups."""

# C cells, G genes, F features of a further modality

from __future__ import annotations

from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from cytoray import storage
from cytoray.corpus.config import ModalityConfig
from cytoray.corpus.readers.base import Format
from cytoray.corpus.readers.frames import read_element, read_frame
from cytoray.corpus.readers.hdf5 import H5Array
from cytoray.corpus.readers.problems import FETCH_AGAIN, UnreadableError, explained
from cytoray.corpus.readers.rows import Array, CompressedRows, DenseRows, RawRows, RowSource, SelectedColumns
from cytoray.corpus.readers.source import Modality, numbered
from cytoray.corpus.readers.tenx import GENES, feature_types
from cytoray.corpus.readers.turned import CompressedColumns

_WRITE_CSR = "Save it as a CSR matrix (scipy.sparse.csr_matrix) or a NumPy array with adata.write_h5ad."
TOUCHED = ("X", "raw", "raw.X", "raw.var", "layers", "obs", "var", "obsm", "mod", "obsmap")


class AnnDataContents:
    """The tree of AnnData in a group of HDF5 or zarr."""

    def __init__(self, tree: Any, format: Format, info: storage.ObjectInfo) -> None:
        """``tree`` is the group that has X, obs and var."""
        self.format = format
        self.num_bytes, self.version = info.num_bytes, info.version
        self.notes: list[str] = []
        self._tree, self._uri = tree, info.uri
        is_old = "X" in tree and "h5sparse_format" in tree["X"].attrs
        if is_old or isinstance(tree.get("obs"), h5py.Dataset):
            self.notes.append("an encoding from before AnnData 0.7")

    def matrices(self) -> dict[str, RowSource]:
        """X, raw.X and the layers, as far as present, over the features that are genes."""
        return {name: self._of_type(name, GENES) for name in self._places()}

    def obs(self) -> pd.DataFrame:
        """The table of cells."""
        return self._frame("obs")

    def var(self, matrix: str) -> pd.DataFrame:
        """The table of genes; raw.X has one of its own."""
        frame, types = self._frame(self._var_key(matrix)), self._types(matrix)
        return frame if types is None else frame[types == GENES]

    def modality_names(self) -> tuple[str, ...]:
        """The other types of features of a matrix with ``feature_types``, and the matrices of obsm."""
        types = self._types(self._typed_matrix())
        others = () if types is None else tuple(f"mod/{name}" for name in sorted(set(types) - {GENES}))
        return (*others, *(f"obsm/{name}" for name in self._tree.get("obsm", ())))

    def modality(self, config: ModalityConfig) -> Modality:
        """Features of another type than genes, or a matrix of obsm: sparse, dense or a table, whose columns name it."""
        if config.matrix.startswith("mod/"):
            matrix, kind = self._typed_matrix(), config.matrix.removeprefix("mod/")
            names = self._frame(self._var_key(matrix)).index[self._types(matrix) == kind]
            return Modality(self._of_type(matrix, kind), [str(name) for name in names])
        element = self._tree[config.matrix]
        names: list[str] | None = None
        rows: RowSource
        if element.attrs.get("encoding-type") == "dataframe":
            frame = read_frame(self._tree, config.matrix)
            names = [str(name) for name in frame.columns]
            rows = MemoryRows(frame.to_numpy())
        else:
            rows = self._rows(config.matrix)
        if config.feature_names is not None:
            names = [str(name) for name in np.ravel(read_element(self._tree[config.feature_names]))]
        elif names is None:
            names = self._names_of(config.matrix.removeprefix("obsm/"), rows.shape[1])
        return Modality(rows, numbered(names, rows.shape[1], config.name))

    def _places(self) -> dict[str, str]:
        """The keys of the matrices by their names; files from before 2020 have a key ``raw.X``."""
        places = {"X": "X", "raw.X": "raw.X" if "raw.X" in self._tree else "raw/X"}
        places.update({f"layers/{name}": f"layers/{name}" for name in self._tree.get("layers", ())})
        return {name: key for name, key in places.items() if key in self._tree}

    def _typed_matrix(self) -> str:
        """The matrix that features other than genes are read from: counts, if a name promises them."""
        there = [name for name in self._places() if self._types(name) is not None]
        counts = [name for name in there if "count" in name.lower() or name == "raw.X"]
        return next(iter([*counts, *there]), "X")

    def _var_key(self, matrix: str) -> str:
        if matrix != "raw.X":
            return "var"
        return "raw.var" if "raw.var" in self._tree else "raw/var"

    def _types(self, matrix: str) -> npt.NDArray[Any] | None:
        """Type of each feature, as Cell Ranger names it; None if there are only genes, or no genes at all."""
        table = self._tree.get(self._var_key(matrix))
        if table is None or isinstance(table, h5py.Dataset) or "feature_types" not in table:
            return None
        types = feature_types([str(name).strip() for name in np.ravel(read_element(table["feature_types"]))])
        return types if len({GENES} & set(types)) and len(set(types)) > 1 else None

    def _of_type(self, matrix: str, kind: str) -> RowSource:
        """A matrix over the features of one type."""
        rows, types = self._rows(self._places()[matrix]), self._types(matrix)
        return rows if types is None else SelectedColumns(rows, np.flatnonzero(types == kind))

    def _names_of(self, name: str, count: int) -> list[str] | None:
        """Names of the features, if ``uns`` has as many under the name of the matrix."""
        stem = name.rpartition("_")[0] or name
        for key in (f"uns/{name}_names", f"uns/{name}", f"uns/{stem}_names", f"uns/{stem}"):
            if key in self._tree and hasattr(self._tree[key], "shape") and self._tree[key].shape == (count,):
                return [str(feature) for feature in read_element(self._tree[key])]
        return None

    def _frame(self, key: str) -> pd.DataFrame:
        if key not in self._tree:
            raise UnreadableError(
                f"{key!r} is missing, so this is not an AnnData file", remedy="Write it with adata.write_h5ad."
            )
        return read_frame(self._tree, key, self.notes)

    def _rows(self, key: str) -> RowSource:
        with explained(self._uri, key):
            return open_rows(self._tree[key], source=(self._uri, self.version, f"{self._tree.name}/{key}"))


def open_rows(element: Any, *, source: tuple[str, ...]) -> RowSource:
    """Open a matrix of AnnData, dense or sparse, in HDF5 or zarr; ValueError if it is not one.

    ``source`` identifies it: URI, version and key.
    """
    if hasattr(element, "shape"):
        return DenseRows(element)
    layout, shape = sparse_layout(element)
    parts = [_array(element, name) for name in ("data", "indices", "indptr")]
    _refuse_lost_chunks(*parts)
    if layout == "csr":
        return CompressedRows(*parts, shape=shape)
    return CompressedColumns(*parts, shape=shape, key=source)


def sparse_layout(group: Any) -> tuple[Literal["csr", "csc"], tuple[int, int]]:
    """Return whether a group holds compressed rows or columns, and its shape (C, G); ValueError if neither."""
    attributes = group.attrs
    layout = str(attributes.get("encoding-type", attributes.get("h5sparse_format", ""))).removesuffix("_matrix")
    shape = attributes.get("shape", attributes.get("h5sparse_shape", ()))
    if layout not in ("csr", "csc") or len(shape) != 2:
        raise UnreadableError("it is not a matrix that AnnData writes", remedy=_WRITE_CSR)
    return ("csr" if layout == "csr" else "csc"), (int(shape[0]), int(shape[1]))


def _array(group: Any, name: str) -> Array:
    """One array of a sparse matrix."""
    element = group[name]
    if not hasattr(element, "shape"):
        raise UnreadableError(f"its {name} is not an array", remedy=_WRITE_CSR)
    if isinstance(element, h5py.Dataset):
        return H5Array(element)
    return element  # type: ignore[no-any-return]


def _refuse_lost_chunks(values: Array, indices: Array, indptr: Array) -> None:
    """Raise UnreadableError if chunks of a sparse zarr matrix are absent that cannot be all zeros.

    zarr stores no chunk of zeros only, and reads an absent one as zeros. Stored zeros come in rows: the chunk beside
    one of them has some too. And indices are all zero only if no row has two entries there.
    """
    for name, array in (("data", values), ("indices", indices)):
        for start, stop in _absent_chunks(array):
            if name == "data":
                size = stop - start
                near = [np.asarray(array[max(0, start - size) : start]), np.asarray(array[stop : stop + size])]
                is_zero = any((part == 0).any() for part in near)
            else:
                is_zero = int(np.diff(np.clip(np.asarray(indptr[:]), start, stop)).max(initial=0)) <= 1
            if not is_zero:
                raise UnreadableError(
                    f"chunks of its {name} are missing, from entry {start:,}",
                    remedy=f"{FETCH_AGAIN} If these are zeros, drop them: adata.X.eliminate_zeros().",
                )


def _absent_chunks(array: Any) -> list[tuple[int, int]]:
    """First element and the one after the last of each chunk (or shard) of a zarr array that is not stored."""
    if isinstance(array, H5Array) or array.nchunks_initialized == array.nchunks:
        return []
    length = int((array.shards or array.chunks)[0])
    keys = (array.metadata.encode_chunk_key((number,)) for number in range(-(-array.shape[0] // length)))
    absent = [number for number, key in enumerate(keys) if not array.store.has(f"{array.path}/{key}")]
    size = int(array.shape[0])
    return [(number * length, min((number + 1) * length, size)) for number in absent]


class MemoryRows:
    """A small matrix in memory."""

    def __init__(self, values_CF: npt.NDArray[Any]) -> None:
        self.shape = (int(values_CF.shape[0]), int(values_CF.shape[1]))
        self.num_entries: int | None = int(np.count_nonzero(values_CF))
        self._values = values_CF

    def read(self, start: int, stop: int) -> RawRows:
        """Rows ``start`` to ``stop``."""
        part = self._values[start:stop]
        row, column = np.nonzero(part)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=stop - start))]).astype(np.int64)
        return RawRows(part[row, column], column, indptr)

    def sample_values(self) -> npt.NDArray[Any]:
        """Return all values."""
        return self._values
