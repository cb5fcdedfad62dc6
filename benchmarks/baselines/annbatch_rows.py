"""annbatch's bare rows: minibatches of CSR, not tokenised, from a collection that ``annbatch_ingest`` wrote.

Run by ``.venv-bench``: ``python -m benchmarks.baselines.annbatch_rows --collection FOLDER --settings 64/512/32``
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import zarr
from annbatch import DatasetCollection, Loader

from benchmarks.baselines.measuring import PeakMemory, show, take_for

BEST, README = "64/512/32", "4096/32/256"  # batch size / chunk size / chunks preloaded


def load_matrix(group: Any) -> Any:
    """The matrix alone, without obs: the fastest annbatch has."""
    import anndata

    return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]))


def main() -> None:
    """Print one JSON line a setting."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--settings", nargs="+", default=[BEST, README])
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    warnings.simplefilter("ignore")
    for settings in options.settings:
        batch_size, chunk_size, num_chunks = (int(part) for part in settings.split("/"))
        loader = Loader(batch_size=batch_size, chunk_size=chunk_size, preload_nchunks=num_chunks, shuffle=True)
        loader.use_collection(DatasetCollection(str(options.collection), mode="r"), load_adata=load_matrix)
        with PeakMemory() as memory:
            figures = take_for(loader, lambda batch: batch["X"].shape[0], seconds=options.seconds)
        show(baseline="annbatch_rows", settings=settings, peak_bytes=memory.peak_bytes, **figures)


if __name__ == "__main__":
    main()
