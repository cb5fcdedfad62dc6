"""Time and memory of a gene network of 5,000 genes and 100,000 cells, from some blocks of it.

    python benchmarks/networks_scale.py                                    # 20,000 cells x 2,000 genes, a minute
    python benchmarks/networks_scale.py --cells 100000 --genes 5000        # all cells and genes, some targets

One JSON line: the time per target (of blocks that are computed), the peak of memory after each step of the inference,
what travels to each of Ray's tasks, and how long all targets would take on this machine's cores. Cells are synthetic:
counts of 20 programs of genes with different depths. The time of all targets is extrapolated: it is
proportional to their number, since each has its own trees.
"""

# C cells, G genes, T transcription factors

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import anndata

from benchmarks.common import QUICK, emit
from cytoray.tasks.networks.building import prepare, work_options
from cytoray.tasks.networks.candidates import TREES
from cytoray.tasks.networks.config import InferNetworksConfig
from cytoray.tasks.networks.evidence import HALVES
from cytoray.tasks.networks.inference import prepare_work

WANTED_TARGETS, NUM_PROGRAMS, CELLS_AT_A_TIME = 5_000, 20, 2_000
GOAL_GB = 16.0  # of a machine that has more than this


def draw_cells(num_cells: int, num_genes: int, *, seed: int) -> sparse.csr_matrix:
    """Draw counts (C, G), about a tenth of them not 0."""
    rng = np.random.default_rng(seed)
    means = rng.lognormal(-2.7, 1.0, num_genes).astype(np.float32)
    loadings = rng.normal(0, 0.5, (NUM_PROGRAMS, num_genes)).astype(np.float32)
    blocks = []
    for start in range(0, num_cells, CELLS_AT_A_TIME):
        num = min(CELLS_AT_A_TIME, num_cells - start)
        active = rng.normal(0, 1, (num, NUM_PROGRAMS)).astype(np.float32) * (rng.random((num, NUM_PROGRAMS)) < 0.2)
        rates = np.exp(active @ loadings) * means * rng.lognormal(0, 0.4, (num, 1)).astype(np.float32)
        blocks.append(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)))
    return sparse.vstack(blocks, format="csr")


def write_cells(path: Path, num_cells: int, genes: list[str]) -> None:
    """Write a file of synthetic cells."""
    counts = draw_cells(num_cells, len(genes), seed=0)
    anndata.AnnData(counts, var=pd.DataFrame(index=genes)).write_h5ad(path)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Infer some blocks of a network, and return times and memory."""
    genes = [f"GENE{number}" for number in range(arguments.genes)]
    data, tfs = folder / "cells.h5ad", folder / "tfs.txt"
    tfs.write_text("\n".join(genes[: arguments.tfs]))
    drawing = multiprocessing.get_context("spawn").Process(target=write_cells, args=(data, arguments.cells, genes))
    drawing.start()  # another process, as memory is counted here
    drawing.join()
    config = InferNetworksConfig(
        data=str(data), tfs=str(tfs), num_targets=WANTED_TARGETS, min_share=0.005, block_size=arguments.block,
        max_cells=arguments.cells,
    )  # fmt: skip
    memory, started = {"before": _peak_gb()}, time.perf_counter()
    prepared = prepare(config)
    memory["cells"] = _peak_gb()
    work = prepare_work(prepared.cells, prepared.candidates, work_options(config), name="all")
    memory["pools"], prepare_s = _peak_gb(), time.perf_counter() - started
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(arguments.blocks):
        block = work.compute(number)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    memory["blocks"] = _peak_gb()
    kept = sum(each.nbytes for each in block[HALVES].values()) / block[HALVES][TREES].shape[-1]
    num_targets = min(arguments.blocks * arguments.block, len(work.targets))
    cores = os.cpu_count() or 1
    return {
        "cells": prepared.cells.num_cells, "genes": arguments.genes, "tfs": len(work.tfs), "targets": num_targets,
        "stored_values": int(prepared.cells.expression.nnz), "prepare_s": prepare_s,
        "per_target_s": seconds / num_targets, "per_target_cpu_s": cpu / num_targets,
        "peak_rss_gb": memory, "work_gb": work.num_bytes / 1e9,
        "evidence_gb": 1.5 * WANTED_TARGETS * kept / 1e9,
        "extrapolated_h": (prepare_s + cpu / num_targets * WANTED_TARGETS / cores) / 3_600, "cores": cores,
        "load": round(os.getloadavg()[0], 2), "goal": f"below {GOAL_GB:g} GB", "met": memory["blocks"] < GOAL_GB,
    }  # fmt: skip


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=2_000 if QUICK else 20_000)
    parser.add_argument("--genes", type=int, default=500 if QUICK else 2_000)
    parser.add_argument("--tfs", type=int, default=50 if QUICK else 400, help="of the genes, the first")
    parser.add_argument("--block", type=int, default=10 if QUICK else 50, help="targets per block")
    parser.add_argument("--blocks", type=int, default=1, help="blocks that are computed")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(parser.parse_args(), Path(folder))
    emit({"name": "networks_scale", **_rounded(found)})


def _rounded(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _rounded(value) for key, value in found.items()}
    return float(f"{found:.3g}") if isinstance(found, float) else found


def _peak_gb() -> float:
    """Return the most memory that this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
