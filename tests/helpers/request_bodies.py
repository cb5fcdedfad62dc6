"""Bodies of requests about the same cells in every format that the service reads."""

# C cells, G genes

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from cytoray.serving.payloads.media import ARROW, H5AD, JSON, NPZ


def json_body(genes: Sequence[str], counts_CG: sp.csr_matrix, **members: Any) -> bytes:
    """Write JSON."""
    starts = counts_CG.indptr.tolist()
    cells = [
        {"i": counts_CG.indices[start:stop].tolist(), "v": counts_CG.data[start:stop].tolist()}
        for start, stop in pairwise(starts)
    ]
    return json.dumps({"genes": list(genes), "cells": cells, **members}).encode()


def arrow_stream(columns: dict[str, Any], *, metadata: dict[str, str] | None = None, **options: Any) -> bytes:
    """Write an Arrow stream of one record batch."""
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def arrays_of(genes: Sequence[str], counts_CG: sp.csr_matrix) -> dict[str, Any]:
    """Return the arrays that stand for cells."""
    return {
        "genes": list(genes),
        "indptr": counts_CG.indptr,
        "indices": counts_CG.indices,
        "data": counts_CG.data,
    }


def arrow_body(genes: Sequence[str], counts_CG: sp.csr_matrix, /, **more: Any) -> bytes:
    """Write an Arrow stream."""
    return arrow_stream({name: [array] for name, array in (arrays_of(genes, counts_CG) | more).items()})


def npz_body(genes: Sequence[str], counts_CG: sp.csr_matrix, /, *, save: Any = np.savez, **more: Any) -> bytes:
    """Write an npz file."""
    stream = io.BytesIO()
    save(stream, **(arrays_of(genes, counts_CG) | more))
    return stream.getvalue()


def h5ad_body(
    genes: Sequence[str], counts_CG: Any, folder: Path, *, change: Callable[[h5py.File], object] | None = None
) -> bytes:
    """Write an h5ad file, and ``change`` it."""
    path = folder / "upload.h5ad"
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(counts_CG.shape[0])])
    anndata.AnnData(counts_CG, obs=obs, var=pd.DataFrame(index=list(genes))).write_h5ad(path, compression="gzip")
    if change is not None:
        with h5py.File(path, "a") as file:
            change(file)
    return path.read_bytes()


def bodies_of(genes: Sequence[str], counts_CG: sp.csr_matrix, folder: Path) -> dict[str, bytes]:
    """Return the body of each media type for the same cells."""
    return {
        JSON: json_body(genes, counts_CG),
        ARROW: arrow_body(genes, counts_CG),
        NPZ: npz_body(genes, counts_CG),
        H5AD: h5ad_body(genes, counts_CG, folder),
    }
