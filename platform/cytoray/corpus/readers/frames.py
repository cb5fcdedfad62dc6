"""Read a table of an AnnData file, in HDF5 or zarr, of any encoding there has been."""

# C cells

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from cytoray.corpus.readers.problems import DAMAGE

MAX_LABELS = 1_000


def read_frame(parent: Any, key: str) -> pd.DataFrame:
    """The table under ``key`` of a group of HDF5 or zarr; ValueError names the column that cannot be read."""
    element = parent[key]
    if isinstance(element, h5py.Dataset):
        return _compound_frame(element, parent)
    # String arrays are kept as objects: pandas' own string type does not survive every column operation.
    with anndata.settings.override(allow_write_nullable_strings=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice of anndata and zarr to whoever wrote the file
        try:
            frame = read_elem(element)
        except DAMAGE as error:
            raise ValueError(_bad_column(element, key) or str(error)) from error
    if not isinstance(frame, pd.DataFrame):
        raise ValueError("it is no table")
    return frame


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


def _bad_column(table: Any, key: str) -> str:
    """Key path and reason of the first column that cannot be read, empty if it is none of them."""
    names = [table.attrs.get("_index", "_index"), *table.attrs.get("column-order", [])]
    for name in map(str, names):
        try:
            read_elem(table[name])
        except DAMAGE as error:
            return f"its column {key}/{name}: {error}"
    return ""


def _compound_frame(table: h5py.Dataset, file: Mapping[str, Any]) -> pd.DataFrame:
    """A table as AnnData wrote it before 0.7: one compound array, categories of its codes in ``uns``."""
    if not table.dtype.names:
        raise ValueError("it is no table")
    columns: dict[str, Any] = {}
    for name in table.dtype.names:
        values = table[name]
        if f"uns/{name}_categories" in file:
            categories = file[f"uns/{name}_categories"].asstr()[()]
            values = pd.Categorical.from_codes(values, categories=pd.Index(np.atleast_1d(categories)))
        elif values.dtype.kind in "SO":
            values = np.array([value.decode() if isinstance(value, bytes) else value for value in values], dtype=object)
        columns[name] = values
    index = next(name for name in ("index", "_index", table.dtype.names[0]) if name in columns)
    return pd.DataFrame({name: values for name, values in columns.items() if name != index}, index=columns[index])
