"""One generative training step, two passes, against the original's: ``python benchmarks/train_step.py``.

The same weights, cells, share of unknown genes and Adam, 2 threads, fp32. Once with cells that fill the context
(1,200 tokens), once with the lengths that real cells have, which the original pads to the longest of its batch of 32.
Either side accumulates gradients over slices that fit into the memory and cache of a CPU: the original over 2 cells
(4 cells take 15 GB), ours over 4,096 tokens. The original drops attention weights out, ours by default does not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import torch

from benchmarks import common, models
from benchmarks.baselines import scgpt_model as original
from benchmarks.flop_counting import executed_flops
from benchmarks.real_cells import draw_cells, longest_cells
from cytoray.model import losses
from cytoray.model.flops import generative_flops
from cytoray.model.transformer import ScGPT
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.collator import PackedGenerativeMinibatch, PackedMinibatch
from cytoray.tokens.packed import pack
from cytoray.tokens.tokenizer import CellTokenizer, TokenBuffers, TokenizerConfig, TokenPlan
from cytoray.tokens.vocabulary import GeneVocabulary

RATIO, COLLATED, THREADS = 0.5, 32, 2
SLICE_CELLS, SLICE_TOKENS = 2, 4096
NUM_CELLS = {"train_step_full": 2, "train_step_real": 4 if common.QUICK else 8}


def main() -> None:
    """Print one JSON line for each distribution of lengths."""
    torch.set_num_threads(THREADS)
    bundle, theirs = models.build_models()
    for name, num_cells in NUM_CELLS.items():
        cells, origin = longest_cells(COLLATED) if name == "train_step_full" else draw_cells(COLLATED)
        ours = Ours(bundle.model, cells.take(np.arange(num_cells)))
        baseline = Baseline(theirs, cells, num_cells)
        measured = common.alternate(ours.rate, baseline.rate)
        settings = {"cells": num_cells, "of": origin, "unknown_share": RATIO, "threads": THREADS, **models.SIZES}
        settings |= {"tokens_per_cell": ours.tokens_per_cell, **ours.flops_ratios()}
        common.report(name, value=measured.value, baseline=measured.baseline, settings=settings)


class Ours:
    """Our model, its optimiser, and cells in packed slices."""

    def __init__(self, model: ScGPT, cells: SparseCells) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        self.slices = list(_slices(cells))
        self.num_unknown = sum(sum(part.unknown_lengths) for part in self.slices)
        self.tokens_per_cell = float(np.minimum(cells.num_genes_per_cell + 1, 1200).mean().round(1))

    def step(self) -> None:
        """Two passes forward, backward, clip, Adam."""
        self.model.train()
        self.optimizer.zero_grad()
        for part in self.slices:
            self._loss(part).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def rate(self) -> float:
        """Measure the cells per second of one step."""
        return common.rate(sum(len(part.known.lengths) for part in self.slices), self.step)

    def _loss(self, part: PackedGenerativeMinibatch) -> torch.Tensor:
        first = self.model.forward_generative(part)
        second = self.model.forward_generative(part, cell_embedding_BD=first.cells_BD.detach())
        assert first.cell_conditioned is not None
        counted = torch.ones_like(part.unknown_targets, dtype=torch.bool)
        predictions = (first.expression, first.cell_conditioned, second.expression)
        terms = [losses.expression_loss(value, part.unknown_targets, counted_BL=counted).total for value in predictions]
        return torch.stack(terms).sum() / self.num_unknown

    def flops_ratios(self) -> dict[str, float]:
        """Operations executed, by torch's counter, over those needed: of two passes forward, and of the whole step.

        A step needs three times its forward; fused attention computes its scores again on the way back.
        """
        config = self.model.config
        needed = sum(
            generative_flops(chosen, part.known.lengths, part.unknown_lengths).total
            for part in self.slices
            for chosen in (config, config.model_copy(update={"cell_conditioned_decoder": "none"}))
        )
        with torch.no_grad():
            forward = executed_flops(lambda: [self._loss(part) for part in self.slices])
        return {
            "forward_executed_over_needed_flops": round(forward / needed, 4),
            "step_executed_over_needed_flops": round(executed_flops(self.step) / (3 * needed), 4),
        }


class Baseline:
    """The original's model, its optimiser, and cells collated as one batch of 32, taken in slices."""

    def __init__(self, model: original.OriginalModel, cells: SparseCells, num_cells: int) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        collated = original.collate_generative(
            models.examples(cells, cls_id=GeneVocabulary.load_default().cls_id), RATIO
        )
        starts = range(0, num_cells, SLICE_CELLS)
        self.slices = [_rows(collated, slice(start, start + SLICE_CELLS)) for start in starts]

    def step(self) -> None:
        """Two passes forward, backward, clip, Adam."""
        self.model.train()
        self.optimizer.zero_grad()
        for part in self.slices:
            torch.stack(list(original.generative_losses(self.model, part).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def rate(self) -> float:
        """Measure the cells per second of one step."""
        return common.rate(sum(len(part.known.genes) for part in self.slices), self.step)


def _rows(batch: original.GenerativeBatch, rows: slice) -> original.GenerativeBatch:
    parts = [
        replace(part, genes=part.genes[rows], values=part.values[rows], padding=part.padding[rows])
        for part in (batch.known, batch.unknown)
    ]
    return original.GenerativeBatch(*parts)


def _slices(cells: SparseCells) -> Iterator[PackedGenerativeMinibatch]:
    """Known and unknown tokens of the cells, a few thousand at a time."""
    tokenizer = CellTokenizer(GeneVocabulary.load_default(), TokenizerConfig())
    start = 0
    lengths = np.minimum(cells.num_genes_per_cell + 1, tokenizer.config.max_length)
    while start < cells.num_cells:
        stop = start + max(1, int((np.cumsum(lengths[start:]) <= SLICE_TOKENS).sum()))
        yield _split(tokenizer, cells.take(np.arange(start, stop)))
        start = stop


def _split(tokenizer: CellTokenizer, cells: SparseCells) -> PackedGenerativeMinibatch:
    packed, ratios = pack(cells), np.full(cells.num_cells, RATIO)
    known, unknown = tokenizer.num_tokens(cells.num_genes_per_cell, ratios)
    kinds = ((np.int64, np.float32), (np.int64, np.float32))
    buffers = TokenBuffers(
        *(np.empty(known.sum(), kind) for kind in kinds[0]), None, *(np.empty(unknown.sum(), kind) for kind in kinds[1])
    )
    rows = np.arange(cells.num_cells)
    tokenizer.fill(packed, rows, np.zeros_like(rows), TokenPlan.packed(known, unknown, ratios=ratios), buffers)
    arrays = (buffers.gene_ids, buffers.values, buffers.unknown_gene_ids, buffers.unknown_values)
    gene_ids, values, unknown_ids, targets = (torch.from_numpy(array) for array in arrays if array is not None)
    minibatch = PackedMinibatch(gene_ids, values, tuple(known.tolist()), cells.cell_ids)
    return PackedGenerativeMinibatch(minibatch, unknown_ids, targets, tuple(unknown.tolist()))


if __name__ == "__main__":
    main()
