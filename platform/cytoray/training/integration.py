"""Batch integration as an objective of the ordinary loop: scGPT's recipe of six losses over a panel of genes.

Masked expression (GEP), the same from the cell embedding (GEPC), each with its probability of not being zero, elastic
cell similarity (ECS), and an adversarial batch classifier (DAB); one batch norm for each batch label (DSBN), and
decoders that see the label. Minibatches mix batch labels; the original takes each from one label.
"""

# B cells, U hidden genes of all cells

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.members import ObsColumn
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.config import ModelConfig
from cytoray.model.heads import Expression
from cytoray.model.losses import SummedLoss, classification_loss, nonzero_loss, similarity_loss
from cytoray.model.transformer import ModelOutput, ScGPT
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.training.config import TrainConfig
from cytoray.training.integration_config import IntegrationConfig
from cytoray.training.objectives import (
    Amounts,
    MaskedMinibatch,
    Prepared,
    Scope,
    count_hidden,
    hide,
    judge_expression,
    measure_every_token,
    squared_error,
)


def integration_stream(
    config: IntegrationConfig, *, tokenizer: TokenizerConfig, train: TrainConfig, panel: Sequence[int]
) -> StreamOptions:
    """Return the stream of integration: the panel's genes with their zeros, some masked, and the batch label."""
    return StreamOptions(
        tokenizer,
        train.seed,
        train.cells_per_step,
        style="masked",
        ratios=(config.mask_ratio,),
        panel=tuple(panel),
        columns=(ObsColumn(config.batch_key),),
        cells_per_minibatch=config.cells_per_minibatch,
    )


def integration_model(base: ModelConfig, *, num_batch_labels: int) -> ModelConfig:
    """Return the model that ``base`` becomes: DSBN, decoders that see the batch, zero probabilities, discriminator."""
    changes = {
        "token_norm": "domain",
        "num_batch_labels": num_batch_labels,
        "decoders_see_batch": True,
        "batch_discriminator": True,
        "zero_probability": True,
        "generative": False,
    }
    return ModelConfig(**{**base.model_dump(), **changes})


@dataclass(frozen=True)
class IntegrationObjective:
    """The losses of the recipe, over the minibatches of ``integration_stream``."""

    config: IntegrationConfig
    pad_id: int
    num_steps: int
    scope: Scope = "minibatch"

    def prepare(self, batch: StepBatch) -> MaskedMinibatch:
        """Cells with hidden genes and their batch labels."""
        hidden = hide(batch, pad_id=self.pad_id)
        codes = torch.from_numpy(batch.columns[self.config.batch_key].astype(np.int64))
        return replace(hidden, cells=replace(hidden.cells, batch_labels=codes))

    def weights(self, step: int) -> dict[str, float]:
        """Weights of the recipe; that of the discriminator may grow with the steps."""
        config = self.config
        ramp = math.tanh(5 * step / self.num_steps) if config.adversarial_ramp else 1.0  # 2 / (1 + exp(-10 p)) - 1
        expression = dict.fromkeys(("masked", "masked_nonzero", "cell_conditioned", "cell_conditioned_nonzero"), 1.0)
        return expression | {"similarity": config.similarity_weight, "adversarial": config.adversarial_weight * ramp}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Hidden genes, pairs of cells of one minibatch, and cells."""
        pairs = int(np.square(np.bincount(batch.minibatches)).sum()) if batch.minibatches is not None else 0
        own = {"similarity": pairs, "adversarial": batch.num_cells}
        return dict.fromkeys(self.weights(batch.step), count_hidden(batch)) | own

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Cells, tokens, and operations of a pass with both decoders and backward."""
        return measure_every_token(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """The six losses; predictions from the cell embedding are those of a model with that decoder."""
        assert isinstance(prepared, MaskedMinibatch)
        assert prepared.cells.batch_labels is not None, "prepare adds the batch labels"
        output: ModelOutput = model(prepared.cells)
        assert output.batches_BK is not None, "this model needs a batch discriminator"
        losses = self._expression("masked", output.expression, prepared)
        if output.cell_conditioned is not None:
            losses |= self._expression("cell_conditioned", output.cell_conditioned, prepared)
        return losses | {
            "similarity": similarity_loss(output.cells_BD, threshold=self.config.similarity_threshold),
            "adversarial": classification_loss(output.batches_BK, prepared.cells.batch_labels),
        }

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Squared errors of the hidden genes, and sums of their values, which give the best constant."""
        assert isinstance(prepared, MaskedMinibatch)
        output: ModelOutput = model(prepared.cells)
        conditioned = None if output.cell_conditioned is None else output.cell_conditioned.value[prepared.places]
        return judge_expression(output.expression.value[prepared.places], conditioned, prepared.targets)

    @staticmethod
    def _expression(name: str, predicted: Expression, prepared: MaskedMinibatch) -> dict[str, SummedLoss]:
        """Squared error and, if the model predicts it, log-likelihood of not being zero, of the hidden genes."""
        losses = {name: squared_error(predicted.value[prepared.places], prepared.targets)}
        if predicted.nonzero_probability is not None:
            chances_U: Tensor = predicted.nonzero_probability[prepared.places]
            counted_U = torch.ones_like(prepared.targets, dtype=torch.bool)
            losses[f"{name}_nonzero"] = nonzero_loss(chances_U, prepared.targets, counted_BL=counted_U)
        return losses
