"""Predict a number of each cell, such as its age or a score, from its embedding."""

# B cells

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig, NumberLoss
from cytoray.model.losses import SummedLoss
from cytoray.model.targets import NumberTarget
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedMinibatch, widen
from cytoray.tokens.keys import Float64
from cytoray.training.objectives import Amounts, Prepared, Scope, measure_embedding


@dataclass(frozen=True)
class NumberedMinibatch:
    """Cells with their standardised numbers."""

    cells: PackedMinibatch
    targets: Tensor  # float32 (B, 1)

    def to(self, device: torch.device | str) -> NumberedMinibatch:
        """The same cells with their tensors on ``device``."""
        return NumberedMinibatch(self.cells.to(device), self.targets.to(device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class RegressionObjective:
    """Squared or Huber error of one standardised number per cell."""

    pad_id: int
    values: Float64  # the number, standardised, of each code that the stream delivers
    loss: NumberLoss = "squared"
    scope: Scope = "cell"

    def prepare(self, batch: StepBatch) -> NumberedMinibatch:
        """Cells with all genes known."""
        cells = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        numbers = self.values[batch.labels].astype(np.float32)
        return NumberedMinibatch(cells.packed(), torch.from_numpy(numbers)[:, None])

    def weights(self, step: int) -> dict[str, float]:
        """1 for the only loss."""
        return {"regression": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Cells of the minibatch."""
        return {"regression": batch.num_cells}

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Cells, tokens, and operations of embedding them with backward."""
        return measure_embedding(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Summed error: ``regression``."""
        return {"regression": self.judge(model, prepared)["regression"]}

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Summed error, and the moments of ``r2`` and ``pearson``."""
        assert isinstance(prepared, NumberedMinibatch)
        return NumberTarget(self.loss).judge(model.classify(model.embed(prepared.cells)), prepared.targets)
