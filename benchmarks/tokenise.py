"""Counts to the tensors of a minibatch, against the original's collating: ``python benchmarks/tokenise.py``.

One thread, rates by its CPU time, 64 cells a minibatch, int64 gene ids and float32 bins. Both start from cells in
memory, as their data sets hold them: ours from packed counts, the original from ready int64 / float32 tensors, which it
bins cell by cell and pads in Python. Ours draws by cell id, or, as embedding does, by the cell's content.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from benchmarks import common, models
from benchmarks.baselines import scgpt_model as original
from benchmarks.real_cells import draw_cells
from cytoray.tokens.cells import UInt64
from cytoray.tokens.collator import collate_cells
from cytoray.tokens.packed import PackedCells, pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizerConfig, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

NUM_CELLS = 256 if common.QUICK else 2048
BATCH_SIZE = 64


def main() -> None:
    """Print one JSON line for packed tokens, as the model takes them, and one for padded ones."""
    torch.set_num_threads(1)
    cells, origin = draw_cells(NUM_CELLS)
    tokenizer = CellTokenizer(GeneVocabulary.load_default(), TokenizerConfig())
    packed = pack(cells)
    settings = {"cells": NUM_CELLS, "of": origin, "batch": BATCH_SIZE, "threads": 1}
    theirs = models.examples(cells, cls_id=tokenizer.vocabulary.cls_id)
    ways = {
        "tokenise": lambda: _tokenise(tokenizer, packed, tokenizer.identities(packed, 0)),
        "tokenise_by_content": lambda: _tokenise(tokenizer, packed, tokenizer.identities(packed)),
        "tokenise_padded": lambda: _tokenise(tokenizer, packed, tokenizer.identities(packed, 0), padded=True),
    }
    for name, ours in ways.items():
        ours()  # compiles
        measured = common.alternate(
            lambda ours=ours: common.rate(NUM_CELLS, ours, cpu=True),  # type: ignore[misc]
            lambda: common.rate(NUM_CELLS, lambda: list(original.tokenise(theirs, batch_size=BATCH_SIZE)), cpu=True),
            rounds=7,
        )
        common.report(name, value=measured.value, baseline=measured.baseline, settings=settings)


def _tokenise(tokenizer: CellTokenizer, packed: PackedCells, identities: UInt64, *, padded: bool = False) -> None:
    """All cells, a minibatch at a time."""
    for start in range(0, NUM_CELLS, BATCH_SIZE):
        rows = np.arange(start, start + BATCH_SIZE)
        if not padded:
            collate_cells(tokenizer, packed, rows, identities=identities)
            continue
        width = int(tokenizer.num_tokens(packed.num_genes_per_cell[rows])[0].max())
        buffers = TokenBuffers(np.empty(BATCH_SIZE * width, np.int64), np.empty(BATCH_SIZE * width, np.float32))
        tokenizer.fill_as(packed, rows, identities[rows], TokenPlan.padded(BATCH_SIZE, width), buffers)
        torch.from_numpy(buffers.gene_ids), torch.from_numpy(buffers.values)


if __name__ == "__main__":
    main()
