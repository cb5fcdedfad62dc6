"""Ingest h5ad files into a committed, globally shuffled corpus, beside annbatch's add_adatas on the same files.

Rates are of whole ingests: headers, both passes, the data report and the commit. Memory is the proportional set size of
the process tree, ours above that of an idle Ray. ``python benchmarks/ingest.py [--big-only]``
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import common
from benchmarks.anchors import annbatch_ingest
from cytoray.cluster import connected
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.manifest import CorpusManifest

NUM_CELLS = 20_000 if common.QUICK else 200_000
BIG_CELLS = 40_000 if common.QUICK else 1_300_000  # 5 GB in one file
ROUNDS = 1 if common.QUICK else 3
POINTS = 60  # of a memory curve that is printed
STORE = common.CACHE / "ingest-store"
CPUS = 2


def main() -> None:
    """Report rate, memory and bytes beside annbatch, and the memory curve of one large file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--big-only", action="store_true", help="the memory curve alone")
    with connected(num_cpus=CPUS):
        _ingest(common.synthetic_files(4_000, num_files=2))  # workers started, kernels compiled
        if not parser.parse_args().big_only:
            _beside_annbatch()
        _one_large_file()
    shutil.rmtree(STORE, ignore_errors=True)


def _beside_annbatch() -> None:
    """Ingest the same files with both, in turn."""
    files = common.synthetic_files(NUM_CELLS)
    h5ad_bytes = common.warm(files) / NUM_CELLS
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        ours.append(_ingest(files))
        if (record := annbatch_ingest(files)) is not None:
            theirs.append(record)
    settings = {"cells": NUM_CELLS, "files": len(files), "cpus": CPUS, "rounds": ROUNDS}
    common.report(
        "ingest_annbatch",
        value=_median(ours, "cells_per_s"),
        baseline=_median(theirs, "cells_per_s"),
        settings=settings,
    )
    peak = _median(theirs, "peak_bytes")
    common.report(
        "ingest_memory",
        value=_median(ours, "above_base_bytes") / 2**20,
        baseline=peak / 2**20 if peak else None,
        settings={**settings, "base_mib": round(_median(ours, "base_bytes") / 2**20)},
    )
    stored = ours[-1]["bytes_per_cell"]
    common.report("store_bytes", value=stored, settings={**settings, "with": "obs and content hashes"})
    common.report("store_annbatch", value=stored, baseline=_median(theirs, "bytes_per_cell"), settings=settings)
    common.report("store_h5ad", value=stored, baseline=h5ad_bytes, settings=settings)


def _one_large_file() -> None:
    """Measure whether memory grows with the file."""
    (path,) = common.synthetic_files(BIG_CELLS, num_files=1, compression="fast")
    record = _ingest([path])
    curve = record["curve"]
    middle = [size for at, size in curve if 0.25 < at / curve[-1][0] < 0.5]
    late = [size for at, size in curve if at / curve[-1][0] > 0.5]
    every = max(1, len(curve) // POINTS)
    common.report(
        "ingest_rss",
        value=record["above_base_bytes"] / 2**30,
        settings={
            "cells": BIG_CELLS,
            "file_gb": round(path.stat().st_size / 1e9, 2),
            "cells_per_s": round(record["cells_per_s"]),
            "bytes_per_cell": round(record["bytes_per_cell"]),
            "second_half_over_second_quarter": round(max(late) / max(middle), 3) if middle and late else None,
            "curve_s_mib": [(round(at), round(size / 2**20)) for at, size in curve[::every]],
        },
    )


def _ingest(files: Sequence[Path]) -> dict[str, Any]:
    """Run one ingest into an empty store; return its rate and memory."""
    from cytoray.corpus.ingest import ingest  # imports Ray, which must wait for its authentication

    shutil.rmtree(STORE, ignore_errors=True)
    gc.collect()
    sources = tuple(SourceConfig(uri=str(path)) for path in files)
    config = IngestConfig(store=str(STORE), corpus="cells", sources=sources)
    with common.watch_memory() as memory:
        started = time.perf_counter()
        manifest: CorpusManifest = ingest(config).manifest
        elapsed = time.perf_counter() - started
    return {
        "cells_per_s": manifest.num_cells / elapsed,
        "bytes_per_cell": manifest.num_bytes / manifest.num_cells,
        "base_bytes": memory.first_bytes,
        "above_base_bytes": memory.peak_bytes - memory.first_bytes,
        "curve": memory.samples,
    }


def _median(records: Sequence[dict[str, Any]], key: str) -> float | None:
    """Return the median of one figure; None without records."""
    return statistics.median(record[key] for record in records) if records else None


if __name__ == "__main__":
    main()
