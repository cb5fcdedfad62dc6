"""An objective of three losses with a count and a weight each, one of them over pairs of cells of a minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss, classification_loss, expression_loss, similarity_loss
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import widen
from cytoray.training.objectives import Amounts, LabelledMinibatch, Prepared, Scope


@dataclass(frozen=True)
class MixedObjective:
    """Values of genes above 5, the cells' types, and the similarity of cells that share a minibatch."""

    pad_id: int
    scope: Scope = "minibatch"

    def prepare(self, batch: StepBatch) -> LabelledMinibatch:
        cells = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids).packed()
        return LabelledMinibatch(cells, torch.from_numpy(batch.labels.astype(np.int64)))

    def weights(self, step: int) -> dict[str, float]:
        return {"high": 0.05, "classification": 2.0, "similarity": 1.0 + step, "unused": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        pairs = sum(part.num_cells**2 for part in batch.split_minibatches())
        return {
            "high": int((batch.values > 5).sum()),
            "classification": batch.num_cells,
            "similarity": pairs,
            "unused": 0,
        }

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        return Amounts(batch.num_cells, batch.num_tokens, 0)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        assert isinstance(prepared, LabelledMinibatch)
        return self.judge(model, prepared) | {
            "similarity": similarity_loss(model.embed(prepared.cells), threshold=0.3),
        }

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        assert isinstance(prepared, LabelledMinibatch)
        output, values = model(prepared.cells), prepared.cells.values
        return {
            "high": expression_loss(output.expression.value, values, counted_BL=values > 5),
            "classification": classification_loss(output.labels_BK, prepared.labels),
        }
