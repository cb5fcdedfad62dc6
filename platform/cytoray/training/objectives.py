"""What is learned from a minibatch: hidden genes of pretraining, and cell types. An objective is one small class."""

# B cells, T tokens of all cells, U unknown genes of all cells, K labels

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.model.flops import embedding_flops, generative_flops
from cytoray.model.losses import classification_loss, expression_loss
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedGenerativeMinibatch, PackedMinibatch, widen
from cytoray.training.config import GenerativeConfig


@dataclass(frozen=True)
class LabelledMinibatch:
    """Cells with the code of their label."""

    cells: PackedMinibatch
    labels: Tensor  # int64 (B,)

    def to(self, device: torch.device | str) -> LabelledMinibatch:
        """The same cells with their tensors on ``device``."""
        return LabelledMinibatch(self.cells.to(device), self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class MaskedMinibatch:
    """Cells of whose genes some have the mask value, and what these are."""

    cells: PackedMinibatch
    places: Tensor  # int64 (U,) of the hidden genes among the T tokens
    targets: Tensor  # float32 (U,)

    def to(self, device: torch.device | str) -> MaskedMinibatch:
        """The same cells with their tensors on ``device``."""
        places, targets = (tensor.to(device, non_blocking=True) for tensor in (self.places, self.targets))
        return MaskedMinibatch(self.cells.to(device), places, targets)


Prepared = PackedGenerativeMinibatch | MaskedMinibatch | LabelledMinibatch


@dataclass(frozen=True)
class Amounts:
    """What a rank's share of a step holds."""

    terms: int  # by which, summed over all ranks, the losses are divided
    cells: int
    tokens: int  # real ones
    flops: int  # operations that a training step on them needs, see model.flops


class Objective(Protocol):
    """Prepares minibatches and tells their losses, each a sum over ``num_terms(prepared)`` terms."""

    def prepare(self, batch: StepBatch) -> Prepared:
        """Widen to the model's types, on the host."""

    def num_terms(self, prepared: Prepared) -> int:
        """Number of terms in each loss."""

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """What ``batch`` holds; additive over the cells of a step."""

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed losses by name; training minimises their sum."""

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, Tensor]:
        """Sums over held-out cells by name, the first being what a better model has less of."""


@dataclass(frozen=True)
class GenerativeObjective:
    """Masked expression (GEN), the same from the cell embedding (GEPC/MVC), and a second pass from the embedding."""

    config: GenerativeConfig
    pad_id: int

    def prepare(self, batch: StepBatch) -> PackedGenerativeMinibatch:
        """The known and unknown genes that the stream has told apart, without padding."""
        assert batch.unknown_gene_ids is not None, "the stream must be generative"
        assert batch.unknown_values is not None, "the stream must be generative"
        known = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        unknown = widen(batch.unknown_gene_ids, batch.unknown_values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        flat = unknown.packed()
        return PackedGenerativeMinibatch(known.packed(), flat.gene_ids, flat.values, flat.lengths)

    def num_terms(self, prepared: Prepared) -> int:
        """Unknown genes of the minibatch."""
        assert isinstance(prepared, PackedGenerativeMinibatch)
        return sum(prepared.unknown_lengths)

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Known and unknown tokens, and operations of one or two passes and their way back."""
        assert batch.unknown_lengths is not None, "the stream must be generative"
        known, unknown = batch.lengths.tolist(), batch.unknown_lengths.tolist()
        flops = generative_flops(model, known, unknown).total
        if self.config.has_second_pass(batch.step):
            alone = model.model_copy(update={"cell_conditioned_decoder": "none"})
            flops += generative_flops(alone, known, unknown).total
        return Amounts(sum(unknown), len(known), sum(known) + sum(unknown), 3 * flops)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed squared errors: ``masked``, ``cell_conditioned`` and, when it is on, ``second_pass``."""
        assert isinstance(prepared, PackedGenerativeMinibatch)
        first = model.forward_generative(prepared)
        losses = {"masked": _squared_error(first.expression, prepared.unknown_targets)}
        if first.cell_conditioned is not None:
            losses["cell_conditioned"] = _squared_error(first.cell_conditioned, prepared.unknown_targets)
        if self.config.has_second_pass(step):
            second = model.forward_generative(prepared, cell_embedding_BD=first.cells_BD.detach())
            losses["second_pass"] = _squared_error(second.expression, prepared.unknown_targets)
        return losses

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, Tensor]:
        """Squared errors of the first pass, and sums of the targets, from which the best constant follows."""
        assert isinstance(prepared, PackedGenerativeMinibatch)
        first = model.forward_generative(prepared)
        return _judge_expression(first.expression, first.cell_conditioned, prepared.unknown_targets)


@dataclass(frozen=True)
class MaskedObjective:
    """Hidden genes stay where they are with the mask value, and all genes see each other (GEP); also from the cell."""

    config: GenerativeConfig
    pad_id: int

    def prepare(self, batch: StepBatch) -> MaskedMinibatch:
        """The genes that the stream has hidden are those whose value it has replaced."""
        assert batch.masked is not None, "the stream must be masked"
        true = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids).packed()
        shown = widen(batch.gene_ids, batch.masked, pad_id=self.pad_id, cell_ids=batch.cell_ids).packed()
        places = torch.nonzero(shown.values != true.values).squeeze(1)
        return MaskedMinibatch(shown, places, true.values[places])

    def num_terms(self, prepared: Prepared) -> int:
        """Hidden genes of the minibatch."""
        assert isinstance(prepared, MaskedMinibatch)
        return len(prepared.targets)

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Tokens, and operations of a pass over all of them with both decoders, and the way back."""
        assert batch.masked is not None, "the stream must be masked"
        lengths, hidden = batch.lengths.tolist(), int((batch.masked != batch.values).sum())
        # Every token's row of the last layer and of the decoders is computed, as if all were asked for.
        every = model.model_copy(update={"cell_embedding": "mean"})
        flops = embedding_flops(every, lengths).total
        flops += generative_flops(model, [0] * len(lengths), lengths).heads
        return Amounts(hidden, len(lengths), sum(lengths), 3 * flops)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed squared errors: ``masked`` and ``cell_conditioned``."""
        assert isinstance(prepared, MaskedMinibatch)
        said, conditioned = self._predict(model, prepared)
        losses = {"masked": _squared_error(said, prepared.targets)}
        if conditioned is not None:
            losses["cell_conditioned"] = _squared_error(conditioned, prepared.targets)
        return losses

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, Tensor]:
        """Squared errors, and sums of the targets, from which the best constant follows."""
        assert isinstance(prepared, MaskedMinibatch)
        return _judge_expression(*self._predict(model, prepared), prepared.targets)

    @staticmethod
    def _predict(model: ScGPT, prepared: MaskedMinibatch) -> tuple[Tensor, Tensor | None]:
        """What is said of the hidden genes (U,), from their hidden states and from the cell embedding."""
        output = model(prepared.cells)
        said: Tensor = output.expression.value[prepared.places]
        conditioned = output.cell_conditioned
        return said, None if conditioned is None else conditioned.value[prepared.places]


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy of the cell classifier (CLS)."""

    pad_id: int

    def prepare(self, batch: StepBatch) -> LabelledMinibatch:
        """Cells of which every gene is known."""
        cells = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        return LabelledMinibatch(cells.packed(), torch.from_numpy(batch.labels.astype(np.int64)))

    def num_terms(self, prepared: Prepared) -> int:
        """Cells of the minibatch."""
        assert isinstance(prepared, LabelledMinibatch)
        return len(prepared.labels)

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Cells, tokens, and operations of embedding them and the way back."""
        lengths = batch.lengths.tolist()
        return Amounts(len(lengths), len(lengths), sum(lengths), 3 * embedding_flops(model, lengths).total)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, Tensor]:
        """Summed cross-entropy: ``classification``."""
        assert isinstance(prepared, LabelledMinibatch)
        return {"classification": self.judge(model, prepared)["classification"]}

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, Tensor]:
        """Summed cross-entropy, and the number of cells whose label was told: ``accuracy`` when divided."""
        assert isinstance(prepared, LabelledMinibatch)
        logits_BK = model.classify(model.embed(prepared.cells))
        right = (logits_BK.argmax(dim=1) == prepared.labels).sum()
        return {"classification": classification_loss(logits_BK, prepared.labels).total, "accuracy": right}


def build_pretraining_objective(config: GenerativeConfig, *, pad_id: int) -> Objective:
    """The objective that the configuration names."""
    return (GenerativeObjective if config.style == "generative" else MaskedObjective)(config, pad_id)


def _squared_error(predicted_U: Tensor, targets_U: Tensor) -> Tensor:
    """Sum of squared errors, in fp32."""
    counted_U = torch.ones_like(targets_U, dtype=torch.bool)
    return expression_loss(predicted_U.float(), targets_U, counted_BL=counted_U).total


def _judge_expression(predicted_U: Tensor, conditioned_U: Tensor | None, targets_U: Tensor) -> dict[str, Tensor]:
    """Sums of squared errors, of targets and of their squares."""
    sums = {"masked": _squared_error(predicted_U, targets_U)}
    if conditioned_U is not None:
        sums["cell_conditioned"] = _squared_error(conditioned_U, targets_U)
    return sums | {"target": targets_U.sum(), "target_square": targets_U.square().sum()}


class ObjectiveModule(nn.Module):
    """Model and objective as the one module that DeepSpeed wraps, so that every pass goes through its hooks."""

    def __init__(self, model: ScGPT, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, prepared: Prepared, step: int, *, judge: bool = False) -> dict[str, Tensor]:
        """Summed losses by name, or with ``judge`` the sums over held-out cells."""
        if judge:
            return self._objective.judge(self.model, prepared)
        return self._objective.losses(self.model, prepared, step)
