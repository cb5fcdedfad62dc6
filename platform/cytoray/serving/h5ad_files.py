"""Add columns, arrays and other elements to an h5ad file that has its own content."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
from anndata.io import write_elem


def is_plain_h5ad(path: str) -> bool:
    """Return whether a file is a local h5ad that columns can be added to."""
    if "://" in path or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        tables = [file[name] for name in ("obs", "var") if name in file]
        return len(tables) == 2 and all(
            isinstance(table, h5py.Group) and table.attrs.get("encoding-type") == "dataframe" for table in tables
        )


def put_element(group: h5py.Group, name: str, value: Any) -> None:
    """Write an element, in place of one of that name."""
    if name in group:
        del group[name]
    write_elem(group, name, value)


def put_column(table: h5py.Group, name: str, values: Any) -> None:
    """Write a column of a table, in place of one of that name; HDF5 has no "/" in names."""
    name = name.replace("/", "_").replace(".", "_")
    put_element(table, name, values)
    order = [*(other for other in table.attrs["column-order"] if other != name), name]
    table.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())


def require_mapping(file: h5py.File, name: str) -> h5py.Group:
    """Return a group of elements such as obsm or uns, which is made if it is missing."""
    group = file.require_group(name)
    group.attrs.setdefault("encoding-type", "dict")
    group.attrs.setdefault("encoding-version", "0.1.0")
    return group
