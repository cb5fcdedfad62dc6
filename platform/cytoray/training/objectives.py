"""Objectives, each one small class: predict hidden genes (pretraining) or cell types."""

# B cells, T tokens of all cells, U unknown genes of all cells, K labels

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.model.flops import embedding_flops, generative_flops
from cytoray.model.groups import ParameterGroup, parameter_groups
from cytoray.model.losses import SummedLoss, expression_loss
from cytoray.model.targets import ClassTarget
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedGenerativeMinibatch, PackedMinibatch, widen
from cytoray.training.config import GenerativeConfig

Scope = Literal["cell", "minibatch"]


class Prepared(Protocol):
    """A dataclass of tensors, on the host until it is moved."""

    def to(self, device: torch.device | str) -> Self:
        """The same with its tensors on ``device``."""


@dataclass(frozen=True)
class LabelledMinibatch:
    """Cells with their label codes."""

    cells: PackedMinibatch
    labels: Tensor  # int64 (B,)

    def to(self, device: torch.device | str) -> LabelledMinibatch:
        """The same cells with their tensors on ``device``."""
        return LabelledMinibatch(self.cells.to(device), self.labels.to(device, non_blocking=True))


@dataclass(frozen=True)
class MaskedMinibatch:
    """Cells with masked genes, and the true values of these."""

    cells: PackedMinibatch
    places: Tensor  # int64 (U,): positions of the hidden genes among the T tokens
    targets: Tensor  # float32 (U,)

    def to(self, device: torch.device | str) -> MaskedMinibatch:
        """The same cells with their tensors on ``device``."""
        places, targets = (tensor.to(device, non_blocking=True) for tensor in (self.places, self.targets))
        return MaskedMinibatch(self.cells.to(device), places, targets)


@dataclass(frozen=True)
class Amounts:
    """Amounts of work in a rank's share of a step."""

    cells: int
    tokens: int  # real ones
    flops: int  # operations of a training step on them, see model.flops


class Objective(Protocol):
    """Prepares minibatches and computes their losses, each a sum with a count of its own.

    A step divides each loss by its count over all ranks and micro-batches, and minimises the weighted sum. With scope
    ``cell`` a loss's terms depend on one cell each, so micro-batches may be cut anywhere. With scope ``minibatch`` they
    depend on the cells that share a minibatch: the stream must have ``cells_per_minibatch``, its minibatches are the
    micro-batches, and neither a token budget nor the number of workers changes which cells share one.
    """

    @property
    def scope(self) -> Scope:
        """Return whether the losses depend on single cells or on the cells of a minibatch."""

    def prepare(self, batch: StepBatch) -> Prepared:
        """Widen to the model's types, on the host."""

    def weights(self, step: int) -> dict[str, float]:
        """Weight of each loss that may occur; the names are the same at every step."""

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Number of terms of each loss in ``weights``, known before the forward pass; additive over micro-batches."""

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Amounts of work in ``batch``; additive over the cells of a step."""

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Losses of the step by name, all of them or some."""

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Figures of held-out cells by name; the first entry selects the best checkpoint (lower is better).

        Their terms depend on one cell each, whatever the scope. A ``Summarising`` objective may return vectors.
        """


@runtime_checkable
class Summarising(Protocol):
    """An objective with figures that are not means over cells, such as correlations."""

    def summarise(self, totals: dict[str, Tensor], means: dict[str, float]) -> dict[str, float]:
        """Return the figures of all held-out cells, by the ``totals`` of ``judge`` and the means of scalar ones."""


@dataclass(frozen=True)
class GenerativeObjective:
    """Masked expression (GEN), the same from the cell embedding (GEPC/MVC), and a second pass from the embedding."""

    config: GenerativeConfig
    pad_id: int
    scope: Scope = "cell"

    def prepare(self, batch: StepBatch) -> PackedGenerativeMinibatch:
        """The known and unknown genes as the stream has split them, without padding."""
        assert batch.unknown_gene_ids is not None, "the stream must be generative"
        assert batch.unknown_values is not None, "the stream must be generative"
        known = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        unknown = widen(batch.unknown_gene_ids, batch.unknown_values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        flat = unknown.packed()
        return PackedGenerativeMinibatch(known.packed(), flat.gene_ids, flat.values, flat.lengths)

    def weights(self, step: int) -> dict[str, float]:
        """1 for each loss."""
        return {"masked": 1.0, "cell_conditioned": 1.0, "second_pass": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Unknown genes of the minibatch, for every loss."""
        assert batch.unknown_lengths is not None, "the stream must be generative"
        return dict.fromkeys(self.weights(batch.step), int(batch.unknown_lengths.sum()))

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Known and unknown tokens, and operations of one or two passes with backward."""
        assert batch.unknown_lengths is not None, "the stream must be generative"
        known, unknown = batch.lengths.tolist(), batch.unknown_lengths.tolist()
        flops = generative_flops(model, known, unknown).total
        if self.config.has_second_pass(batch.step):
            alone = model.model_copy(update={"cell_conditioned_decoder": "none"})
            flops += generative_flops(alone, known, unknown).total
        return Amounts(len(known), sum(known) + sum(unknown), 3 * flops)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Summed squared errors: ``masked``, ``cell_conditioned`` and, if enabled, ``second_pass``."""
        assert isinstance(prepared, PackedGenerativeMinibatch)
        first = model.forward_generative(prepared)
        losses = {"masked": squared_error(first.expression, prepared.unknown_targets)}
        if first.cell_conditioned is not None:
            losses["cell_conditioned"] = squared_error(first.cell_conditioned, prepared.unknown_targets)
        if self.config.has_second_pass(step):
            second = model.forward_generative(prepared, cell_embedding_BD=first.cells_BD.detach())
            losses["second_pass"] = squared_error(second.expression, prepared.unknown_targets)
        return losses

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Squared errors of the first pass, and sums of the targets, which give the best constant."""
        assert isinstance(prepared, PackedGenerativeMinibatch)
        first = model.forward_generative(prepared)
        return judge_expression(first.expression, first.cell_conditioned, prepared.unknown_targets)


@dataclass(frozen=True)
class MaskedObjective:
    """Hidden genes keep their place with the mask value, and all genes see each other (GEP); also from the cell."""

    config: GenerativeConfig
    pad_id: int
    scope: Scope = "cell"

    def prepare(self, batch: StepBatch) -> MaskedMinibatch:
        """The hidden genes are those whose value the stream has replaced."""
        return hide(batch, pad_id=self.pad_id)

    def weights(self, step: int) -> dict[str, float]:
        """1 for each loss."""
        return {"masked": 1.0, "cell_conditioned": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Hidden genes of the minibatch, for every loss."""
        return dict.fromkeys(self.weights(batch.step), count_hidden(batch))

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Tokens, and operations of a pass over all of them with both decoders and backward."""
        return measure_every_token(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Summed squared errors: ``masked`` and ``cell_conditioned``."""
        assert isinstance(prepared, MaskedMinibatch)
        predicted, conditioned = self._predict(model, prepared)
        losses = {"masked": squared_error(predicted, prepared.targets)}
        if conditioned is not None:
            losses["cell_conditioned"] = squared_error(conditioned, prepared.targets)
        return losses

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Squared errors, and sums of the targets, which give the best constant."""
        assert isinstance(prepared, MaskedMinibatch)
        return judge_expression(*self._predict(model, prepared), prepared.targets)

    @staticmethod
    def _predict(model: ScGPT, prepared: MaskedMinibatch) -> tuple[Tensor, Tensor | None]:
        """Predictions for the hidden genes (U,), from their hidden states and from the cell embedding."""
        output = model(prepared.cells)
        predicted: Tensor = output.expression.value[prepared.places]
        conditioned = output.cell_conditioned
        return predicted, None if conditioned is None else conditioned.value[prepared.places]


@dataclass(frozen=True)
class ClassificationObjective:
    """Cross-entropy of the cell classifier (CLS); with a label tree, of a label or any below it."""

    pad_id: int
    below: tuple[tuple[bool, ...], ...] | None = None  # (K, K) of ``LabelTree.below``
    scope: Scope = "cell"

    def prepare(self, batch: StepBatch) -> LabelledMinibatch:
        """Cells with all genes known."""
        cells = widen(batch.gene_ids, batch.values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        return LabelledMinibatch(cells.packed(), torch.from_numpy(batch.labels.astype(np.int64)))

    def weights(self, step: int) -> dict[str, float]:
        """1 for the only loss."""
        return {"classification": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Cells of the minibatch."""
        return {"classification": batch.num_cells}

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Cells, tokens, and operations of embedding them with backward."""
        return measure_embedding(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Summed cross-entropy: ``classification``."""
        assert isinstance(prepared, LabelledMinibatch)
        return {"classification": self.judge(model, prepared)["classification"]}

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Summed cross-entropy, and the number of correct cells (their label or one below): ``accuracy`` if divided."""
        assert isinstance(prepared, LabelledMinibatch)
        target = ClassTarget(None if self.below is None else torch.tensor(self.below))
        return target.judge(model.classify(model.embed(prepared.cells)), prepared.labels)


def hide(batch: StepBatch, *, pad_id: int) -> MaskedMinibatch:
    """Cells of a masked stream; the hidden genes are those whose value the stream has replaced."""
    assert batch.masked is not None, "the stream must be masked"
    true = widen(batch.gene_ids, batch.values, pad_id=pad_id, cell_ids=batch.cell_ids).packed()
    shown = widen(batch.gene_ids, batch.masked, pad_id=pad_id, cell_ids=batch.cell_ids).packed()
    places = torch.nonzero(shown.values != true.values).squeeze(1)
    return MaskedMinibatch(shown, places, true.values[places])


def count_hidden(batch: StepBatch) -> int:
    """Number of genes that ``hide`` hides."""
    assert batch.masked is not None, "the stream must be masked"
    return int((batch.masked != batch.values).sum())


def measure_embedding(model: ModelConfig, batch: StepBatch) -> Amounts:
    """Amounts of work if cells are embedded, backward included."""
    lengths = batch.lengths.tolist()
    return Amounts(len(lengths), sum(lengths), 3 * embedding_flops(model, lengths).total)


def measure_every_token(model: ModelConfig, batch: StepBatch) -> Amounts:
    """Amounts of work if the last layer and the decoders are computed for every token, backward included."""
    lengths = batch.lengths.tolist()
    every = model.model_copy(update={"cell_embedding": "mean"})
    flops = embedding_flops(every, lengths).total
    flops += generative_flops(model, [0] * len(lengths), lengths).heads
    return Amounts(len(lengths), sum(lengths), 3 * flops)


def build_pretraining_objective(config: GenerativeConfig, *, pad_id: int) -> Objective:
    """Build the objective that the configuration names."""
    return (GenerativeObjective if config.style == "generative" else MaskedObjective)(config, pad_id)


def squared_error(predicted_U: Tensor, targets_U: Tensor) -> SummedLoss:
    """Sum of squared errors, in fp32."""
    counted_U = torch.ones_like(targets_U, dtype=torch.bool)
    return expression_loss(predicted_U.float(), targets_U, counted_BL=counted_U)


def judge_expression(predicted_U: Tensor, conditioned_U: Tensor | None, targets_U: Tensor) -> dict[str, SummedLoss]:
    """Return sums of squared errors, of targets and of their squares."""
    sums = {"masked": squared_error(predicted_U, targets_U)}
    if conditioned_U is not None:
        sums["cell_conditioned"] = squared_error(conditioned_U, targets_U)
    count = sums["masked"].count
    targets = {"target": targets_U.sum(), "target_square": targets_U.square().sum()}
    return sums | {name: SummedLoss(total, count) for name, total in targets.items()}


class ObjectiveModule(nn.Module):
    """Model and objective as one module for DeepSpeed to wrap, so that every pass runs its hooks."""

    def __init__(self, model: ScGPT, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def parameter_groups(self, *, layer_decay: float) -> list[ParameterGroup]:
        """Return the trained parameters of the model by depth."""
        return parameter_groups(self.model, layer_decay=layer_decay)

    def forward(self, prepared: Prepared, step: int, *, judge: bool = False) -> dict[str, Tensor]:
        """Summed losses by name, or with ``judge`` total(s) and count of each figure of held-out cells, in a row."""
        if judge:
            figures = self._objective.judge(self.model, prepared)
            return {
                name: torch.cat([found.total.double().reshape(-1), found.count.double().reshape(1)])
                for name, found in figures.items()
            }
        return {name: loss.total for name, loss in self._objective.losses(self.model, prepared, step).items()}
