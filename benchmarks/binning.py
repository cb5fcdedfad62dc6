"""Exact binning against scGPT's per-row binning, one core: ``python -m benchmarks.binning``.

Ours starts from the packed cells of a corpus (gap-coded genes, one-byte counts) and ends with the bin of every gene,
ties drawn by key; scGPT's starts from each cell's float32 values and draws from NumPy's global generator. Rates are by
CPU time of the one thread at work, and the two alternate.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from benchmarks import common
from benchmarks.baselines import scgpt
from benchmarks.packed_cells import load_packed_cells
from cytoray.tokens.packed import unpack
from cytoray.tokens.tokenizer import CellTokenizer, TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_CELLS = 512 if common.QUICK else 4096
NUM_BASELINE_CELLS = 256 if common.QUICK else 2048
EPOCHS = 5


def main() -> None:
    """Measure and print one JSON line."""
    torch.set_num_threads(1)
    packed = load_packed_cells(NUM_CELLS)
    cells = unpack(packed)
    package = scgpt.load_scgpt(common.WHEELS)
    tokenizer = CellTokenizer(GeneVocabulary.load_default(), TokenizerConfig())
    tokenizer.bin_cells(packed, epoch=0)  # compiles
    indptr = cells.indptr[: NUM_BASELINE_CELLS + 1]
    measured = common.alternate(
        lambda: common.rate(
            EPOCHS * NUM_CELLS, lambda: [tokenizer.bin_cells(packed, epoch=epoch) for epoch in range(EPOCHS)], cpu=True
        ),
        lambda: common.rate(NUM_BASELINE_CELLS, lambda: scgpt.bin_rows(package, cells.values, indptr), cpu=True),
        rounds=9,
    )
    common.report(
        "binning",
        value=measured.value,
        baseline=measured.baseline,
        settings={
            "cells": NUM_CELLS,
            "genes_per_cell": float(np.mean(cells.num_genes_per_cell).round(1)),
            "threads": 1,
        },
    )


if __name__ == "__main__":
    main()
