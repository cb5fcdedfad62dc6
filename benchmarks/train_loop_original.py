"""The original's training loop: its loader's examples, collator, padding and masks, two passes, clip, Adam."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import models
from benchmarks.baselines import scgpt_model as original
from benchmarks.train_loop_trial import RATIO, WARM_UP_STEPS, Trial
from cytoray.corpus.stream import load_cells
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.vocabulary import GeneVocabulary

SLICE_CELLS = 2  # of a batch, whose gradients add up: what fits the memory and the caches of a CPU


def train_original(trial: Trial) -> dict[str, Any]:
    """Seconds of each of the steps after the first ``WARM_UP_STEPS``, on the cells that the other sides have there."""
    torch.set_num_threads(trial.threads)
    torch.manual_seed(0)
    vocabulary, shape = GeneVocabulary.load_default(), trial.shape
    model = original.OriginalModel(
        vocabulary.size,
        shape.width,
        shape.num_heads,
        shape.feedforward_width,
        shape.num_layers,
        dropout=shape.dropout,
        pad_id=vocabulary.pad_id,
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    steps_s, losses = [], []
    warm_up = True
    for cells in _cells_of_steps(trial):
        examples = models.examples(cells, cls_id=vocabulary.cls_id)  # Arrow rows in the original: not timed
        if warm_up:
            few = original.collate_generative(examples[:SLICE_CELLS], RATIO, pad_id=vocabulary.pad_id)
            _step(model, optimizer, few)
            warm_up = False
        started = time.perf_counter()
        losses.append(_step(model, optimizer, original.collate_generative(examples, RATIO, pad_id=vocabulary.pad_id)))
        steps_s.append(time.perf_counter() - started)
    assert np.isfinite(losses).all(), f"the baseline does not train: {losses}"
    return {"steps_s": steps_s, "losses": losses}


def _cells_of_steps(trial: Trial) -> Iterator[SparseCells]:
    """The cells of each step, read before and looked up by their ids."""
    stream = trial.open_stream()
    cells = load_cells(stream.store, stream.manifest)
    row_of = {cell: row for row, cell in enumerate(cells.cell_ids.tolist())}
    for step in range(WARM_UP_STEPS, WARM_UP_STEPS + trial.num_steps):
        batch = stream.read_step(step, rank=0, world_size=1)
        yield cells.take(np.array([row_of[cell] for cell in batch.cell_ids.tolist()]))


def _step(model: original.OriginalModel, optimizer: torch.optim.Optimizer, batch: original.GenerativeBatch) -> float:
    """One step over a collated batch, slice by slice; its loss."""
    optimizer.zero_grad()
    slices = list(_slices(batch))
    total = 0.0
    for part in slices:
        losses = original.generative_losses(model, part)
        loss = torch.stack(list(losses.values())).sum() / len(slices)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), original.CLIP_NORM)
    optimizer.step()
    return total


def _slices(batch: original.GenerativeBatch) -> Iterator[original.GenerativeBatch]:
    """A few cells at a time, as wide as the whole batch was padded."""
    for start in range(0, len(batch.known.genes), SLICE_CELLS):
        rows = slice(start, start + SLICE_CELLS)
        known, unknown = (
            replace(part, genes=part.genes[rows], values=part.values[rows], padding=part.padding[rows])
            for part in (batch.known, batch.unknown)
        )
        yield original.GenerativeBatch(known, unknown)
