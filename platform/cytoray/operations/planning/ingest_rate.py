"""Measure how fast this machine ingests cells with a given number of genes, and how much memory that takes.

``python -m cytoray.operations.planning.ingest_rate ORDER`` is the process that does it; it prints JSON.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pydantic import Field

from cytoray.config import Config
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.synthetic import Compression, SynthConfig, synthesise
from cytoray.errors import CorpusError

SMALL, LARGE = 1_000, 9_000  # cells
NUM_GENES = 20_000
LIMIT_S = 300.0
STDERR_LINES = 4


class IngestOrder(Config):
    """The cells to ingest for the measurement."""

    genes_per_cell: float = Field(gt=0, description="Mean number of expressed genes.")
    compression: Compression = Field("gzip", description="As the files are compressed.")
    started: float = Field(0.0, description="Wall-clock time when the process was started.")


class IngestRate(Config):
    """Measured figures of one process."""

    start_s: float  # from the start of the process until its imports are done
    fixed_s: float  # of an ingest of no cells, with kernels to load
    entries_per_s: float
    bytes_per_entry: float  # of the corpus
    memory_bytes: int  # peak, resident
    num_cells: int  # that were ingested


def measure_rate(order: IngestOrder) -> IngestRate:
    """Ingest synthetic cells of two sizes in a process of its own; takes some ten seconds.

    Raises CorpusError with the end of its output if it fails.
    """
    environment = os.environ | {"CYTORAY_FEW_CELLS": str(10 * LARGE), "RAY_AUTH_MODE": "token"}
    order = order.model_copy(update={"started": time.time()})
    command = [sys.executable, "-m", __name__, order.model_dump_json()]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CorpusError(
            f"Measuring an ingest took longer than {LIMIT_S:.0f} s.", remedy="Try again on an idle machine."
        ) from error
    if done.returncode:
        lines = "\n".join(done.stderr.strip().splitlines()[-STDERR_LINES:])
        raise CorpusError(
            f"Measuring an ingest failed:\n{lines}\n", remedy="Check memory and space in the temporary folder."
        )
    return IngestRate.model_validate_json(done.stdout)


def main() -> None:
    """Measure and print."""
    order = IngestOrder.model_validate_json(sys.argv[1])
    import cytoray.stages.ingest  # noqa: F401 - what a job imports

    start_s = time.time() - order.started
    with tempfile.TemporaryDirectory(prefix="cytoray-ingest-rate-") as name:
        folder = Path(name)
        first_s, *_ = _ingest(folder, order, SMALL)
        small_s, small_entries, _ = _ingest(folder, order, SMALL)
        large_s, large_entries, num_bytes = _ingest(folder, order, LARGE)
    per_entry = max(large_s - small_s, 1e-9) / (large_entries - small_entries)
    rate = IngestRate(
        start_s=start_s,
        fixed_s=max(0.0, first_s - per_entry * small_entries),
        entries_per_s=1 / per_entry,
        bytes_per_entry=num_bytes / large_entries,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        num_cells=LARGE,
    )
    print(rate.model_dump_json())  # noqa: T201


def _ingest(folder: Path, order: IngestOrder, num_cells: int) -> tuple[float, int, int]:
    """Ingest ``num_cells`` synthetic cells; returns seconds, entries and bytes of the corpus."""
    from cytoray.corpus.ingest import ingest

    inner = Path(tempfile.mkdtemp(dir=folder))
    config = SynthConfig(
        num_cells=num_cells,
        num_genes=NUM_GENES,
        mean_genes=min(6_000.0, max(1.0, order.genes_per_cell)),
        num_files=1,
        compression=order.compression,
    )
    files = synthesise(inner / "cells", config)
    sources = tuple(SourceConfig(uri=str(file)) for file in files)
    started = time.perf_counter()
    manifest = ingest(IngestConfig(store=str(inner / "store"), corpus="cells", sources=sources)).manifest
    return time.perf_counter() - started, manifest.num_entries, manifest.num_bytes


if __name__ == "__main__":
    main()
