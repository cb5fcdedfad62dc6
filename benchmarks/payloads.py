"""CPU time to read a request of 512 cells in each format: ``python -m benchmarks.payloads``.

Baseline of reading: JSON by pydantic, with a Python object per number. All sides alternate in one process; times are
CPU times of the service's process, and for h5ad wall time as well, as a process of its own reads the file.
"""

from __future__ import annotations

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks import common
from cytoray.serving.config import Limits
from cytoray.serving.payloads.media import ARROW, H5AD, JSON, NPZ, Form
from cytoray.serving.payloads.parsing import parse
from cytoray.serving.sending import Cells, encode_cells, encode_stream
from cytoray.tasks.embedding.answers import EmbedRequest

NUM_CELLS, NUM_GENES, NUM_ENTRIES = 512, 30_000, 2_500
ROUNDS = 3 if common.QUICK else 15
LIMITS = Limits(max_body_bytes=2**28)


def main() -> None:
    """Print a JSON line for each format."""
    sides = {name: _side(body, form) for name, (body, form) in _bodies().items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(ROUNDS + 1):  # the first compiles and imports
        for name, (_, run) in sides.items():
            times[name].append(_timed(run))
    medians = {
        name: [statistics.median(side) for side in zip(*found[1:], strict=True)] for name, found in times.items()
    }
    base = medians["json by pydantic"][0]
    for name, (cpu_s, wall_s) in medians.items():
        figures = {
            "cpu_ms": round(1000 * cpu_s, 2),
            "wall_ms": round(1000 * wall_s, 2),
            "ratio": round(base / cpu_s, 1),
        }
        common.emit({"name": f"read {name}", "bytes": sides[name][0], **figures})


def _bodies() -> dict[str, tuple[bytes, Form | None]]:
    """Return the same cells in every format."""
    rng = np.random.default_rng(0)
    columns = np.sort(np.argsort(rng.random((NUM_CELLS, NUM_GENES)), axis=1)[:, :NUM_ENTRIES], axis=1).astype(np.int32)
    values = 1 + rng.poisson(1.5, columns.size).astype(np.float32)
    starts = np.arange(0, columns.size + 1, NUM_ENTRIES)
    counts = sp.csr_matrix((values, columns.ravel(), starts), shape=(NUM_CELLS, NUM_GENES))
    genes = [f"GENE{number}" for number in range(NUM_GENES)]
    cells = Cells(genes, None, counts)
    text, stream = encode_cells(cells, range(NUM_CELLS)), encode_stream(cells, range(NUM_CELLS))
    archive = io.BytesIO()
    np.savez(archive, genes=genes, indptr=counts.indptr, indices=counts.indices, data=counts.data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        anndata.AnnData(counts, var=pd.DataFrame(index=genes)).write_h5ad(path, compression="gzip")
        upload = path.read_bytes()
    return {
        "json by pydantic": (text, None),
        "json": (text, Form(JSON)),
        "arrow": (stream, Form(ARROW)),
        "npz": (archive.getvalue(), Form(NPZ)),
        "h5ad": (upload, Form(H5AD)),
    }


def _side(body: bytes, form: Form | None) -> tuple[int, Callable[[], Any]]:
    if form is None:
        return len(body), lambda: _by_pydantic(body)
    return len(body), lambda: parse(body, form, kind=EmbedRequest, limits=LIMITS)


def _by_pydantic(body: bytes) -> Any:
    """Read JSON as a list of Python's numbers for each cell, and join them."""
    request = EmbedRequest.model_validate_json(body)
    indices = np.fromiter(chain.from_iterable(cell.i for cell in request.cells), np.int64)
    values = np.fromiter(chain.from_iterable(cell.v for cell in request.cells), np.float64).astype(np.float32)
    return indices, values, list(pairwise(np.cumsum([len(cell.i) for cell in request.cells])))


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Return CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


if __name__ == "__main__":
    main()
