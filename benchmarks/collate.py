"""Sample + bin + pad + mask in one pass against scGPT's DataCollator, one core: ``python benchmarks/collate.py``.

Both make (batch, 1200) gene ids, bins and masked bins, 40 % masked. Ours starts from the packed cells of a corpus;
scGPT's from ready int64 / float32 tensors (made outside the clock: its collator bins in place). Batches of 32, and
ours in blocks of 512 rows a call, as the stream calls it. Rates are by CPU time of the one thread at work; the two
alternate.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from benchmarks import common
from benchmarks.baselines import scgpt
from benchmarks.packed_cells import load_packed_cells
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import PackedCells, unpack
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizerConfig, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_CELLS = 512 if common.QUICK else 4096
NUM_BASELINE_CELLS = 128 if common.QUICK else 1024
ROWS, WIDTH, REPEATS = 512, 1200, 5
OUTPUTS = {"collate_compact": ("uint16", "int8"), "collate_wide": ("int64", "float32")}


def main() -> None:
    """Measure and print one JSON line for compact and one for wide outputs."""
    torch.set_num_threads(1)
    packed = load_packed_cells(NUM_CELLS)
    cells = unpack(packed)
    package = scgpt.load_scgpt(common.WHEELS)
    tokenizer = CellTokenizer(GeneVocabulary.load_default(), TokenizerConfig())
    collator = scgpt.make_collator(package)
    for name, (ids, values) in OUTPUTS.items():
        buffers = TokenBuffers(*(np.empty(ROWS * WIDTH, kind) for kind in (ids, values, values)))
        _fill(tokenizer, packed, buffers)  # compiles
        measured = common.alternate(
            lambda buffers=buffers: common.rate(
                REPEATS * NUM_CELLS, lambda: _fill(tokenizer, packed, buffers), cpu=True
            ),
            lambda: _baseline_rate(collator, cells),
            rounds=9,
        )
        share = float((buffers.masked == -1).mean() / (buffers.values > 0).mean())
        common.report(
            name,
            value=measured.value,
            baseline=measured.baseline,
            settings={
                "cells": NUM_CELLS,
                "genes_per_cell": float(np.mean(cells.num_genes_per_cell).round(1)),
                "output": f"{ids}/{values}",
                "masked_share": round(share, 4),
                "threads": 1,
            },
        )


def _fill(tokenizer: CellTokenizer, packed: PackedCells, buffers: TokenBuffers) -> None:
    """Tokenise all cells ``REPEATS`` times, each in a new epoch."""
    plan = TokenPlan.padded(ROWS, WIDTH, ratios=np.full(ROWS, 0.4))
    for epoch, start in itertools.product(range(REPEATS), range(0, NUM_CELLS, ROWS)):
        tokenizer.fill(packed, np.arange(start, start + ROWS), np.full(ROWS, epoch), plan, buffers)


def _baseline_rate(collator: object, cells: SparseCells) -> float:
    """Measure the cells per second of scGPT's collator."""
    indptr = cells.indptr[: NUM_BASELINE_CELLS + 1]
    examples = scgpt.make_examples(cells.values, cells.gene_ids, indptr)
    return common.rate(NUM_BASELINE_CELLS, lambda: scgpt.collate_all(collator, examples), cpu=True)


if __name__ == "__main__":
    main()
