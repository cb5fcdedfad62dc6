"""annbatch's ``add_adatas`` with its defaults: h5ad files to a collection of shuffled zarr groups.

Run by ``.venv-bench``: ``python -m benchmarks.baselines.annbatch_ingest --out FOLDER FILE.h5ad...``
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path

import h5py
import zarr
from annbatch import DatasetCollection

from benchmarks.baselines.measuring import PeakMemory, folder_bytes, show


def main() -> None:
    """Print one JSON line: rate, peak memory of the process tree, bytes a cell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})  # as its README says for local disks
    warnings.simplefilter("ignore")
    shutil.rmtree(options.out, ignore_errors=True)
    num_cells = 0
    for path in options.files:
        with h5py.File(path) as file:
            num_cells += len(file["X/indptr"]) - 1
    with PeakMemory() as memory:
        started = time.perf_counter()
        DatasetCollection(str(options.out)).add_adatas(adata_paths=options.files, shuffle=True)
        elapsed = time.perf_counter() - started
    show(
        baseline="annbatch_ingest", num_cells=num_cells, seconds=elapsed, cells_per_s=num_cells / elapsed,
        peak_bytes=memory.peak_bytes, bytes_per_cell=folder_bytes(options.out) / num_cells,
    )  # fmt: skip


if __name__ == "__main__":
    main()
