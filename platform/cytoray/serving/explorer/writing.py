"""Write a session's answers into a copy of its h5ad, in a process of its own; files of other formats lose their counts.

``python -m cytoray.serving.explorer.writing FOLDER OPTIONS`` is started when somebody downloads the file.
"""

# C cells that were answered, R rows of the file

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata.io import write_elem
from scipy import sparse

from cytoray.drafts import draft_of
from cytoray.serving.explorer.cells import StoredCells
from cytoray.serving.explorer.child import Report, child_main
from cytoray.serving.explorer.columns import read_column, read_layout
from cytoray.serving.explorer.downloads import ANNOTATED, PREFIX, answer_columns, title_of
from cytoray.serving.explorer.layout_inputs import read_embeddings
from cytoray.serving.explorer.sessions import Column, Session

EMBEDDING = "X_scGPT"  # in obsm, as `cytoray embed --h5ad` writes it


def write_annotated(folder: Path, options: dict[str, Any], report: Report) -> None:
    """Write ``annotated.h5ad``: the file ``options["uri"]`` with columns in obs, arrays in obsm, the model in uns."""
    session = Session(folder)
    cells = StoredCells.open(folder / "cells")
    with draft_of(folder / ANNOTATED) as draft:
        if is_plain_h5ad(options["uri"]):
            shutil.copyfile(options["uri"], draft)
            rows = np.array(cells.rows)
        else:
            empty = sparse.csr_matrix((cells.num_cells, 0), dtype=np.float32)
            anndata.AnnData(empty, obs=pd.DataFrame(index=pd.Index(cells.names, dtype=object))).write_h5ad(draft)
            rows = np.arange(cells.num_cells)
        with h5py.File(draft, "a") as file:
            _add(file, session, rows)


def is_plain_h5ad(path: str) -> bool:
    """Whether a file is a local h5ad that columns can be added to."""
    if "://" in path or not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        tables = [file[name] for name in ("obs", "var") if name in file]
        return len(tables) == 2 and all(
            isinstance(table, h5py.Group) and table.attrs.get("encoding-type") == "dataframe" for table in tables
        )


def _add(file: h5py.File, session: Session, rows: npt.NDArray[np.int64]) -> None:
    """Add the answers; ``rows`` (C,) are the cells' rows in the file."""
    obs = file["obs"]
    num_rows = len(obs[obs.attrs["_index"]])
    columns = answer_columns(session)
    for column in columns:
        if not column.part_of:
            name = PREFIX + title_of(column).replace("/", "_").replace(".", "_")
            _write(obs, name, _spread_column(session, column, rows, num_rows))
            order = [*(other for other in obs.attrs["column-order"] if other != name), name]
            obs.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())
    arrays = {EMBEDDING: read_embeddings(session.folder)}
    arrays |= {f"X_{PREFIX}{name}": read_layout(session, name) for name in session.state.layouts}
    names: dict[str, Any] = {}
    for key in dict.fromkeys((column.group, column.part_of) for column in columns if column.part_of):
        parts = [column for column in columns if (column.group, column.part_of) == key]
        title = PREFIX + "_".join(part for part in key if part != "annotate")
        arrays[title] = np.stack([read_column(session, part).to_numpy(zero_copy_only=False) for part in parts], axis=1)
        names[f"{title}_names"] = np.array([part.name for part in parts], dtype=object)
    for group in ("obsm", "uns"):
        file.require_group(group).attrs.setdefault("encoding-type", "dict")
        file[group].attrs.setdefault("encoding-version", "0.1.0")
    for name, array in arrays.items():
        whole = np.full((num_rows, array.shape[1]), np.nan, np.float32)
        whole[rows] = array
        _write(file["obsm"], name, whole)
    for name, value in {**names, f"{PREFIX}model": session.state.model.model_dump()}.items():
        _write(file["uns"], name, value)


def _write(group: h5py.Group, name: str, value: Any) -> None:
    if name in group:
        del group[name]
    write_elem(group, name, value)


def _spread_column(session: Session, column: Column, rows: npt.NDArray[np.int64], num_rows: int) -> Any:
    """Return a column over all R rows of the file, missing for cells that were not answered."""
    values = read_column(session, column)
    if column.kind == "number":
        whole = np.full(num_rows, np.nan, np.float32)
        whole[rows] = values.to_numpy(zero_copy_only=False)
        return whole
    texts = np.full(num_rows, None, object)
    texts[rows] = np.array(values.to_pylist(), object)
    return pd.Categorical(texts, categories=column.categories)


if __name__ == "__main__":
    child_main(write_annotated)
