"""Memory of embedding 100,000 cells from a backed h5ad, through the Python face: ``python benchmarks/embed_memory.py``.

Synthetic cells of 1,500 genes. The model is one layer of width 512 that sees 256 tokens of a cell: what grows with the
number of cells (the packed counts, the embeddings) is whole, only the time is cut. Prints by how much the resident
memory of the process grew over what it was with the model loaded.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import anndata
import numpy as np
import psutil

from benchmarks import common
from cytoray.api import scGPT, scGPTConfig

NUM_CELLS = 2_000 if common.QUICK else 100_000


def main() -> None:
    """Print one JSON line."""
    (path,) = common.synthetic_files(NUM_CELLS, num_files=1, compression="fast")
    warnings.simplefilter("ignore")
    face = scGPT(scGPTConfig(nlayers=1, embsize=512, d_hid=512, max_length=256, emb_mode="cls"))
    small = anndata.read_h5ad(path, backed="r")[:64].to_memory()
    face.get_embeddings(face.process_data(small))  # compiles, and loads what is loaded once
    watch = _Peak()
    started = time.perf_counter()
    with watch:
        data = anndata.read_h5ad(path, backed="r")
        embeddings = face.get_embeddings(face.process_data(data))
    seconds = time.perf_counter() - started
    assert embeddings.shape == (NUM_CELLS, 512)
    assert np.isfinite(embeddings).all()
    settings = {"cells": NUM_CELLS, "file_bytes": path.stat().st_size, "seconds": round(seconds), "tokens": 256}
    common.report("embed_memory", value=watch.grown_bytes / 2**30, settings=settings)


class _Peak:
    """The highest resident memory of this process while the block runs, above that at its start."""

    def __enter__(self) -> _Peak:
        self._process, self._done = psutil.Process(os.getpid()), threading.Event()
        self._first = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.05):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown_bytes(self) -> int:
        """How much it grew."""
        return self._peak - self._first


if __name__ == "__main__":
    main()
