"""Read a table of an AnnData file, in HDF5 or zarr, of any encoding there has been."""

# C cells

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from cytoray.corpus.readers.problems import DAMAGE

MAX_LABELS = 1_000
SHOWN_COLUMNS = 5  # in a note
# Encodings of AnnData that hold something else than one value per row.
_NO_COLUMNS = ("dataframe", "dict", "csr_matrix", "csc_matrix", "anndata", "raw", "awkward-array")


def read_frame(parent: Any, key: str, notes: list[str] | None = None) -> pd.DataFrame:
    """The table under ``key`` of a group of HDF5 or zarr; ValueError names the column that cannot be read.

    Columns that a table cannot hold (several values per row, compound values) are left out, which is put to ``notes``.
    """
    element = parent[key]
    if isinstance(element, h5py.Dataset):
        return _compound_frame(element, parent, notes)
    # String arrays are kept as objects: pandas' own string type does not survive every column operation.
    with anndata.settings.override(allow_write_nullable_strings=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of anndata and zarr to whoever wrote the file
        try:
            left_out = [
                name for name in _column_names(element)[1:] if name in element and not _is_column(element[name])
            ]
            note_left_out(left_out, key, notes)
            frame = _read_columns(element, left_out) if left_out else read_elem(element)
        except DAMAGE as error:
            raise ValueError(_bad_column(element, key) or str(error)) from error
    if not isinstance(frame, pd.DataFrame):
        raise ValueError("it is not a table")
    return frame


def note_left_out(names: Iterable[str], table: str, notes: list[str] | None) -> None:
    """Put to ``notes`` which columns of a table are left out, if there are any."""
    listed = list(names)
    if listed and notes is not None:
        some = ", ".join(listed[:SHOWN_COLUMNS]) + (", …" if len(listed) > SHOWN_COLUMNS else "")
        note = f"columns of {table} with more than one value per row are left out: {some}"
        if note not in notes:
            notes.append(note)


def unholdable(frame: pd.DataFrame) -> list[Any]:
    """Columns whose values are lists, arrays, tables or other things than one number, text or flag."""
    found = []
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True).startswith("mixed"):
            if not all(pd.api.types.is_scalar(value) for value in column):
                found.append(name)
        elif column.dtype.kind == "V" and isinstance(column.dtype, np.dtype):
            found.append(name)
    return found


def read_element(element: Any) -> Any:
    """An array, a table or a text of an AnnData file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_elem(element)


def label_columns(frame: pd.DataFrame) -> tuple[str, ...]:
    """Columns that tell cells apart by 2 to ``MAX_LABELS`` distinct texts."""
    found = []
    for name, column in frame.items():
        is_text = isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "OU"
        if (is_text or column.dtype.kind == "b") and 2 <= column.nunique() <= MAX_LABELS:
            found.append(str(name))
    return tuple(found)


def _column_names(table: Any) -> list[str]:
    """The names of a table's index and of its columns in the file."""
    return [str(name) for name in (table.attrs.get("_index", "_index"), *table.attrs.get("column-order", []))]


def _is_column(element: Any) -> bool:
    """Whether an element has one plain value per row, as far as its shape and type say."""
    if hasattr(element, "shape"):
        return len(element.shape) == 1 and not element.dtype.names
    return element.attrs.get("encoding-type", "") not in _NO_COLUMNS


def _read_columns(table: Any, left_out: Sequence[str]) -> pd.DataFrame:
    """A table without some of its columns."""
    index, *names = _column_names(table)
    columns = {name: read_elem(table[name]) for name in names if name not in left_out}
    return pd.DataFrame(columns, index=pd.Index(read_elem(table[index])))


def _bad_column(table: Any, key: str) -> str:
    """Key path and reason of the first column that cannot be read, empty if all can be."""
    for name in _column_names(table):
        try:
            read_elem(table[name])
        except DAMAGE as error:
            return f"its column {key}/{name}: {error}"
    return ""


def _compound_frame(table: h5py.Dataset, file: Mapping[str, Any], notes: list[str] | None) -> pd.DataFrame:
    """A table as AnnData wrote it before 0.7: one compound array, categories of its codes in ``uns``."""
    if not table.dtype.names:
        raise ValueError("it is not a table")
    columns: dict[str, Any] = {}
    left_out = [name for name in table.dtype.names if table.dtype[name].shape or table.dtype[name].names]
    note_left_out(left_out, str(table.name).strip("/"), notes)
    for name in (name for name in table.dtype.names if name not in left_out):
        values = table[name]
        if f"uns/{name}_categories" in file:
            categories = file[f"uns/{name}_categories"].asstr()[()]
            values = pd.Categorical.from_codes(values, categories=pd.Index(np.atleast_1d(categories)))
        elif values.dtype.kind in "SO":
            values = np.array([value.decode() if isinstance(value, bytes) else value for value in values], dtype=object)
        columns[name] = values
    index = next(name for name in ("index", "_index", *table.dtype.names) if name in columns)
    return pd.DataFrame({name: values for name, values in columns.items() if name != index}, index=columns[index])
