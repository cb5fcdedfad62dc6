"""What is learned from a minibatch: the generative objective of pretraining and cell-type classification."""

# B cells, G unknown genes a cell, K labels

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.model.flops import embedding_flops, generative_flops
from cytoray.model.losses import SummedLoss, classification_loss, expression_loss
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import GenerativeMinibatch, Minibatch, widen
from cytoray.training.config import GenerativeConfig


@dataclass(frozen=True)
class LabelledMinibatch:
    """Cells with the code of their label."""

    cells: Minibatch
    labels: Tensor  # int64 (B,)

    def to(self, device: torch.device | str) -> LabelledMinibatch:
        """The same cells with their tensors on ``device``."""
        return LabelledMinibatch(self.cells.to(device), self.labels.to(device, non_blocking=True))


Prepared = GenerativeMinibatch | LabelledMinibatch


class Objective(Protocol):
    """Prepares a minibatch and tells its losses, each a sum over ``num_terms(prepared)`` terms."""

    def prepare(self, batch: StepBatch) -> Prepared:
        """Widen to the model's types, on the host."""

    def num_terms(self, prepared: Prepared) -> int:
        """By how many terms, summed over all ranks, the losses are divided."""

    def amounts(self, model: ModelConfig, prepared: Prepared, step: int) -> tuple[int, int, int]:
        """Cells, real tokens, and operations that a training step on them needs."""

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed losses by name; training minimises their sum."""


@dataclass(frozen=True)
class GenerativeObjective:
    """Masked expression (GEN), the same from the cell embedding (GEPC/MVC), and a second pass from the embedding."""

    config: GenerativeConfig
    pad_id: int

    def prepare(self, batch: StepBatch) -> GenerativeMinibatch:
        """The known and unknown genes that the stream has told apart."""
        assert batch.unknown_gene_ids is not None, "the stream must be generative"
        assert batch.unknown_values is not None, "the stream must be generative"
        known = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        unknown = widen(batch.unknown_gene_ids, batch.unknown_values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        return GenerativeMinibatch(known, unknown.gene_ids, unknown.values, unknown.padding_mask)

    def num_terms(self, prepared: Prepared) -> int:
        """Unknown genes of the minibatch."""
        assert isinstance(prepared, GenerativeMinibatch)
        return int((~prepared.unknown_padding_mask).sum())

    def amounts(self, model: ModelConfig, prepared: Prepared, step: int) -> tuple[int, int, int]:
        """Cells, known and unknown tokens, and operations of one or two passes and their way back."""
        assert isinstance(prepared, GenerativeMinibatch)
        known = (~prepared.known.padding_mask).sum(dim=1).tolist()
        unknown = (~prepared.unknown_padding_mask).sum(dim=1).tolist()
        flops = generative_flops(model, known, unknown).total
        if step >= self.config.second_pass_after:
            alone = model.model_copy(update={"cell_conditioned_decoder": "none"})
            flops += generative_flops(alone, known, unknown).total
        return len(known), sum(known) + sum(unknown), 3 * flops

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed squared errors: ``masked``, ``cell_conditioned`` and, when it is on, ``second_pass``."""
        assert isinstance(prepared, GenerativeMinibatch)
        first = model.forward_generative(prepared)
        losses = {"masked": self._error(first.expression, prepared)}
        if first.cell_conditioned is not None:
            losses["cell_conditioned"] = self._error(first.cell_conditioned, prepared)
        if step >= self.config.second_pass_after:
            second = model.forward_generative(prepared, cell_embedding_BD=first.cells_BD.detach())
            losses["second_pass"] = self._error(second.expression, prepared)
        return {name: loss.total for name, loss in losses.items()}

    @staticmethod
    def _error(predicted_BG: Tensor, prepared: GenerativeMinibatch) -> SummedLoss:
        counted_BG = ~prepared.unknown_padding_mask
        return expression_loss(predicted_BG.float(), prepared.unknown_targets, counted_BL=counted_BG)


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy of the cell classifier (CLS)."""

    pad_id: int

    def prepare(self, batch: StepBatch) -> LabelledMinibatch:
        """Cells of which every gene is known."""
        cells = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        return LabelledMinibatch(cells, torch.from_numpy(batch.labels.astype(np.int64)))

    def num_terms(self, prepared: Prepared) -> int:
        """Cells of the minibatch."""
        assert isinstance(prepared, LabelledMinibatch)
        return len(prepared.labels)

    def amounts(self, model: ModelConfig, prepared: Prepared, step: int) -> tuple[int, int, int]:
        """Cells, tokens, and operations of embedding them and the way back."""
        assert isinstance(prepared, LabelledMinibatch)
        lengths = (~prepared.cells.padding_mask).sum(dim=1).tolist()
        return len(lengths), sum(lengths), 3 * embedding_flops(model, lengths).total

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed cross-entropy: ``classification``."""
        assert isinstance(prepared, LabelledMinibatch)
        logits_BK = model.classify(model.embed(prepared.cells))
        return {"classification": classification_loss(logits_BK, prepared.labels).total}


class ObjectiveModule(nn.Module):
    """Model and objective as the one module that DeepSpeed wraps, so that every pass goes through its hooks."""

    def __init__(self, model: ScGPT, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed losses by name."""
        return self._objective.losses(self.model, prepared, step)
