"""Write tables of answers as an h5ad file: cells in obs, arrays of numbers in obsm, no expression."""

# C cells, D columns of an array

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from scipy import sparse

from cytoray import storage
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.tables import ANSWER, HEADER

Float32 = npt.NDArray[np.float32]


def write_h5ad(
    path: Path, tables: Sequence[str | pa.Table], *, model: ModelInfo, obsm: Mapping[str, tuple[str, ...]]
) -> None:
    """Write the cells of ``tables``, URIs of parquet files or tables in memory, in that order, one at a time.

    obs has ``obs_name`` as its index, and the columns of numbers and texts that are not empty; lists of texts are
    joined by " | ". ``obsm`` names the columns of each of its arrays: one of lists of numbers, or several of numbers;
    an array without any answer is left out. What is nested, such as neighbours, stays in the tables. uns has the model
    and, if there are some, the header and the members of the answer that are not about single cells. X is (C, 0).
    """
    columns = {name for group in obsm.values() for name in group}
    obs = pd.concat([_obs(_read(table), columns) for table in tables], ignore_index=True).set_index("obs_name")
    obs.index.name = None
    obs = obs.drop(columns=[name for name in obs if obs[name].isna().all()])
    uns: dict[str, Any] = {"cytoray_model": model.model_dump()}
    metadata = _read(tables[0]).schema.metadata
    if HEADER in metadata:
        uns["cytoray_header"] = metadata[HEADER].decode()
    if ANSWER in metadata:
        uns["cytoray_answer"] = metadata[ANSWER].decode()
    empty = sparse.csr_matrix((len(obs), 0), dtype=np.float32)
    anndata.AnnData(empty, obs=obs, uns=uns).write_h5ad(path)
    with h5py.File(path, "a") as file:
        for key, names in obsm.items():
            if not any(_has_values(_read(table), names[0]) for table in tables):
                continue  # such as places on the map of a reference that has none
            width = max(array_width(_read(table), names) for table in tables)
            target = file["obsm"].create_dataset(key, (len(obs), width), np.float32)
            target.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            start = 0
            for table in tables:
                part = read_array(_read(table), names, width)
                target[start : start + len(part)] = part
                start += len(part)


def _read(table: str | pa.Table) -> pa.Table:
    if not isinstance(table, str):
        return table
    return pq.read_table(io.BytesIO(storage.read_bytes(table)))


def _has_values(table: pa.Table, name: str) -> bool:
    """Return whether any cell has a value in a column, which may be absent."""
    return name in table.column_names and bool(table[name].null_count < len(table))


def _obs(table: pa.Table, arrays: set[str]) -> pd.DataFrame:
    """Return the columns of a table that obs can have, with texts as objects."""
    columns: dict[str, Any] = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if name in arrays:
            continue
        if pa.types.is_dictionary(kind):  # the categories of tables differ
            columns[name] = table[name].cast(kind.value_type).to_pandas()
            continue
        if pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
            columns[name] = [None if texts is None else " | ".join(texts) for texts in table[name].to_pylist()]
        elif not pa.types.is_nested(kind):
            columns[name] = table[name].to_pandas()
    return pd.DataFrame(columns)


def array_width(table: pa.Table, names: tuple[str, ...]) -> int:
    """Return the number of columns of an array; 0 if no cell of the table has one."""
    if not pa.types.is_list(kind := table.schema.field(names[0]).type):
        return int(kind.list_size) if pa.types.is_fixed_size_list(kind) else len(names)
    lengths = pa.compute.list_value_length(table[names[0]])
    return int(pa.compute.max(lengths).as_py() or 0)


def read_array(table: pa.Table, names: tuple[str, ...], width: int) -> Float32:
    """Return an array (C, D), NaN for cells without an answer."""
    if not pa.types.is_nested(table.schema.field(names[0]).type):
        return np.stack([table[name].to_numpy().astype(np.float32) for name in names], axis=1)
    found = np.full((table.num_rows, width), np.nan, np.float32)
    column = table[names[0]].combine_chunks()
    there = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    found[there] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(there), width)
    return found
