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
from scipy import sparse

from cytoray.drafts import draft_of
from cytoray.serving.explorer.cells import StoredCells
from cytoray.serving.explorer.child import Report, child_main
from cytoray.serving.explorer.columns import read_column, read_layout
from cytoray.serving.explorer.downloads import ANNOTATED, PREFIX, answer_columns, title_of
from cytoray.serving.explorer.layout_inputs import read_embeddings
from cytoray.serving.explorer.sessions import Column, Session
from cytoray.serving.h5ad_files import is_plain_h5ad, put_column, put_element, require_mapping

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


def _add(file: h5py.File, session: Session, rows: npt.NDArray[np.int64]) -> None:
    """Add the answers; ``rows`` (C,) are the cells' rows in the file."""
    obs = file["obs"]
    num_rows = len(obs[obs.attrs["_index"]])
    columns = answer_columns(session)
    for column in columns:
        if not column.part_of:
            put_column(obs, PREFIX + title_of(column), _spread_column(session, column, rows, num_rows))
    arrays = {EMBEDDING: read_embeddings(session.folder)}
    arrays |= {f"X_{PREFIX}{name}": read_layout(session, name) for name in session.state.layouts}
    names: dict[str, Any] = {}
    for key in dict.fromkeys((column.group, column.part_of) for column in columns if column.part_of):
        parts = [column for column in columns if (column.group, column.part_of) == key]
        title = PREFIX + "_".join(part for part in key if part != "annotate")
        arrays[title] = np.stack([read_column(session, part).to_numpy(zero_copy_only=False) for part in parts], axis=1)
        names[f"{title}_names"] = np.array([part.name for part in parts], dtype=object)
    obsm, uns = (require_mapping(file, name) for name in ("obsm", "uns"))
    for name, array in arrays.items():
        whole = np.full((num_rows, array.shape[1]), np.nan, np.float32)
        whole[rows] = array
        put_element(obsm, name, whole)
    for name, value in {**names, f"{PREFIX}model": session.state.model.model_dump()}.items():
        put_element(uns, name, value)


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
