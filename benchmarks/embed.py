"""Embed real cells, against the original's path with the same weights: ``python benchmarks/embed.py``.

12 layers of width 512, random weights, 2 threads, all in fp32. The original's path: bin each cell in Python, pad 64
cells to the longest, all layers in full. What it runs on a CPU is torch's fused path of ``nn.TransformerEncoder``;
masked attention without it is faster here, so there is a line against either. Both sides start from raw counts.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # also as a script: the package `benchmarks` is there

import numpy as np
import torch

from benchmarks import common, models
from benchmarks.baselines import scgpt_model as original
from benchmarks.flop_counting import executed_flops
from benchmarks.real_cells import draw_cells
from cytoray.model.bundle import ModelBundle
from cytoray.model.flops import embedding_flops
from cytoray.model.predictor import CellPredictor
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import collate, collate_packed
from cytoray.tokens.tokenizer import CellTokenizer

NUM_CELLS = 16 if common.QUICK else 64
BATCH_SIZE = 64
THREADS = 2


def main() -> None:
    """Print one JSON line against each way in which torch can run the original's layers."""
    torch.set_num_threads(THREADS)
    cells, origin = draw_cells(NUM_CELLS)
    bundle, theirs = models.build_models()
    predictor = CellPredictor(bundle, pooling="cls")
    predictor.predict(cells.take(np.arange(2)))  # compiles
    examples = models.examples(cells, cls_id=bundle.vocabulary.cls_id)
    settings = {"cells": NUM_CELLS, "of": origin, "batch": BATCH_SIZE, "threads": THREADS, **models.SIZES}
    settings |= {"tokens_per_cell": float(np.minimum(cells.num_genes_per_cell + 1, 1200).mean().round(1))}
    settings |= {"executed_over_needed_flops": _flops_ratio(bundle, cells)}
    settings |= {"max_difference_on_equal_tokens": _difference(bundle, theirs, cells.take(np.arange(4)))}
    for name, fused in (("embed", True), ("embed_masked", False)):
        measured = common.alternate(
            lambda: common.rate(NUM_CELLS, lambda: predictor.predict(cells)),
            lambda fused=fused: common.rate(
                NUM_CELLS,
                lambda: original.embed(theirs, examples, mask_fast_path=fused, batch_size=BATCH_SIZE),
            ),
        )
        common.report(name, value=measured.value, baseline=measured.baseline, settings=settings)


def _flops_ratio(bundle: ModelBundle, cells: SparseCells) -> float:
    """Operations executed, by torch's counter, over those needed."""
    tokens = CellTokenizer(bundle.vocabulary, bundle.tokenizer_config)(cells)
    batch = collate_packed(tokens)
    with torch.no_grad():
        executed = executed_flops(lambda: bundle.model.embed(batch))
    return round(executed / embedding_flops(bundle.model.config, batch.lengths).total, 4)


@torch.no_grad()
def _difference(bundle: ModelBundle, theirs: original.OriginalModel, cells: SparseCells) -> float:
    """Both models on the same tokens: which bin a tied value takes is not compared."""
    tokens = CellTokenizer(bundle.vocabulary, bundle.tokenizer_config)(cells)
    padded = collate(tokens, pad_id=bundle.vocabulary.pad_id, pad_value=-2.0)
    batch = original.TokenBatch(padded.gene_ids, padded.values, padded.padding_mask)
    want = theirs.eval()(batch)[:, 0]
    got = bundle.model.embed(collate_packed(tokens))
    return float((torch.nn.functional.normalize(got) - torch.nn.functional.normalize(want)).abs().max())


if __name__ == "__main__":
    main()
