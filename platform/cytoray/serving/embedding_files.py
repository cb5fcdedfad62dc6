"""Write tables of embeddings as an h5ad file: cells in obs, embeddings in obsm, the model in uns, no expression."""

# C cells, D width

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from cytoray import storage
from cytoray.tasks.messages import ModelInfo
from cytoray.tokens.cells import Float32

OBSM_KEY = "X_scGPT"
LABEL_COLUMNS = ("label", "probability", "status", "fitting", "unseen_p")


def write_h5ad(path: Path, tables: Sequence[str], *, model: ModelInfo) -> None:
    """Write the cells of the parquet files ``tables`` (URIs), in that order, one table at a time.

    obs has ``cell_id``, if the model predicts labels ``label`` and ``probability``, and if it measures how sure it is
    ``status``, ``fitting`` and ``unseen_p``; X is (C, 0).
    """
    obs = pd.concat([_read(table, embeddings=False).to_pandas() for table in tables], ignore_index=True)
    obs = obs.set_index("obs_name").drop(columns="source")
    obs.index.name = None
    for names in (["label", "probability"], ["status", "fitting", "unseen_p"]):
        if obs[names[0]].isna().all():
            obs = obs.drop(columns=names)
    uns = {"cytoray_model": model.model_dump()}
    empty = sparse.csr_matrix((len(obs), 0), dtype=np.float32)
    anndata.AnnData(empty, obs=obs, uns=uns).write_h5ad(path)
    with h5py.File(path, "a") as file:
        start = 0
        for table in tables:
            part = _embeddings(_read(table, embeddings=True))
            target = file["obsm"].require_dataset(OBSM_KEY, (len(obs), part.shape[1]), np.float32)
            target.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            target[start : start + len(part)] = part
            start += len(part)


def _read(uri: str, *, embeddings: bool) -> pa.Table:
    columns = ["embedding"] if embeddings else ["cell_id", "obs_name", "source", *LABEL_COLUMNS]
    return pq.read_table(io.BytesIO(storage.read_bytes(uri)), columns=columns)


def _embeddings(table: pa.Table) -> Float32:
    """Return the column of embeddings, (C, D)."""
    column = table["embedding"].combine_chunks()
    flat: Float32 = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size)
