"""Read one element of an h5ad file, a table or rows of a matrix, or say in plain words why it cannot be read."""

# C cells, G genes

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, sparse_dataset
from scipy import sparse

from cytoray.errors import CorpusError

# What h5py, anndata and scipy raise when bytes are damaged or a group holds something else than it should.
_DAMAGE = (
    OSError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    RuntimeError,
    OverflowError,
    MemoryError,
)


@contextlib.contextmanager
def explained(uri: str, what: str) -> Iterator[None]:
    """Turn what reading a damaged or foreign file raises into a CorpusError that names the file and the part."""
    try:
        yield
    except _DAMAGE as error:
        raise CorpusError(
            f"{uri}: {what} cannot be read ({error}).",
            remedy="The file is damaged, or no AnnData file: fetch it again, or write it with adata.write_h5ad(...).",
            uri=uri,
        ) from error


def open_h5(file: BinaryIO, uri: str, num_bytes: int) -> h5py.File:
    """Open an HDF5 file for reading; CorpusError in plain words where HDF5 would not."""
    try:
        return h5py.File(file, "r")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error)
        if num_bytes == 0:
            problem = "the file is empty"
        elif "truncated" in reason:
            problem = "the file is truncated (its end is missing)"
        elif "signature" in reason:
            problem = "this is not an h5ad file (no HDF5 signature)"
        else:
            problem = f"the file cannot be opened as HDF5 ({reason})"
        raise CorpusError(f"{uri}: {problem}.", remedy="Fetch it again, or name an .h5ad file.", uri=uri) from error


def find_matrices(file: h5py.File) -> dict[str, str]:
    """Matrices of the file by their name in AnnData, and their key; files of before 2020 have a key ``raw.X``."""
    places = {"X": "X", "raw.X": "raw.X" if "raw.X" in file else "raw/X"}
    places.update({f"layers/{name}": f"layers/{name}" for name in file.get("layers", ())})
    return {name: key for name, key in places.items() if key in file}


def matrix_shape(element: h5py.Dataset | h5py.Group) -> tuple[int, int]:
    """Shape (C, G) of a dense or sparse matrix."""
    num_cells, num_genes = element.shape if isinstance(element, h5py.Dataset) else sparse_dataset(element).shape
    return int(num_cells), int(num_genes)


def is_by_column(element: h5py.Dataset | h5py.Group) -> bool:
    """Whether a matrix is column-compressed, so that a range of its rows cannot be read alone."""
    return not isinstance(element, h5py.Dataset) and sparse_dataset(element).format == "csc"


def read_row_range(element: h5py.Dataset | h5py.Group, start: int, stop: int) -> sparse.csr_matrix:
    """Rows ``start`` to ``stop`` of a matrix that is not column-compressed."""
    if isinstance(element, h5py.Dataset):
        return sparse.csr_matrix(np.asarray(element[start:stop], dtype=np.float32))
    return _tidy(sparse_dataset(element)[start:stop])


def read_turned(element: h5py.Group) -> sparse.csr_matrix:
    """A whole column-compressed matrix, turned into rows."""
    return _tidy(sparse_dataset(element).to_memory())


def _tidy(matrix: Any) -> sparse.csr_matrix:
    """As float32 CSR, each entry once and none of them zero."""
    # scipy's compiled code would follow a wrong index out of memory; its own check trusts the last pointer.
    if (np.diff(matrix.indptr) < 0).any():
        raise ValueError("the row pointers fall")
    matrix.check_format(full_check=True)
    rows = sparse.csr_matrix(matrix, dtype=np.float32)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def read_frame(file: h5py.File, key: str) -> pd.DataFrame:
    """The table under ``key``: obs, or var."""
    element = file[key]
    if isinstance(element, h5py.Dataset):
        return _legacy_frame(element, file)
    # String arrays are kept as objects: pandas' own string type does not survive every column operation.
    with anndata.settings.override(allow_write_nullable_strings=False), warnings.catch_warnings():
        warnings.simplefilter("ignore", anndata.OldFormatWarning)
        frame = read_elem(element)
    if not isinstance(frame, pd.DataFrame):
        raise ValueError("it is no table")
    return frame


def _legacy_frame(table: h5py.Dataset, file: h5py.File) -> pd.DataFrame:
    """A table as AnnData wrote it before 0.7: one compound array, categories of its codes in ``uns``."""
    if not table.dtype.names:
        raise ValueError("it is no table")
    columns: dict[str, Any] = {}
    for name in table.dtype.names:
        values = table[name]
        if f"uns/{name}_categories" in file:
            categories = file[f"uns/{name}_categories"].asstr()[()]
            values = pd.Categorical.from_codes(values, categories=categories)
        elif values.dtype.kind in "SO":
            values = np.array([value.decode() if isinstance(value, bytes) else value for value in values], dtype=object)
        columns[name] = values
    index = next(name for name in ("index", "_index", table.dtype.names[0]) if name in columns)
    return pd.DataFrame({name: values for name, values in columns.items() if name != index}, index=columns[index])
