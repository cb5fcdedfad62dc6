"""Multi-omic training as an objective of the ordinary loop: hidden genes, proteins and peaks from the others.

Masked values (GEP) and the same from the cell embedding (GEPC), as in scGPT's multi-omic recipe: the embedding of its
modality is added to each token where it is decoded. Each modality has losses and counts of its own, so that a dozen
proteins count as much as a thousand genes. With batches decoders see them, and an adversarial classifier (DAB) removes
them from the cell embedding.
"""

# B cells, T tokens, U hidden tokens of all cells

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.members import ObsColumn
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss, classification_loss
from cytoray.model.transformer import ModelOutput, ScGPT
from cytoray.tokens.features import GENES, RNA, FeatureTokens, modality_codes
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.training.config import TrainConfig
from cytoray.training.multiomic_config import MultiomicConfig
from cytoray.training.objectives import (
    Amounts,
    MaskedMinibatch,
    Prepared,
    Scope,
    hide,
    measure_every_token,
    squared_error,
)


@dataclass(frozen=True)
class MultiomicTokens:
    """The tokens of a multi-omic model: a panel of genes, and the features of further modalities."""

    vocabulary: GeneVocabulary  # extended by the features
    panel: tuple[int, ...]
    features: tuple[FeatureTokens, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the modalities from code 1 on: the genes, then the others."""
        return (RNA, *(tokens.modality for tokens in self.features))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of tokens that a cell may have of each modality in ``names``."""
        return (len(self.panel), *(min(part.num_features, part.max_tokens) for part in self.features))


def multiomic_stream(
    config: MultiomicConfig, tokens: MultiomicTokens, *, tokenizer: TokenizerConfig, train: TrainConfig
) -> StreamOptions:
    """Return the stream: genes of the panel with zeros and the features of each cell, some masked."""
    columns = () if config.batch_key is None else (ObsColumn(config.batch_key),)
    return StreamOptions(
        tokenizer,
        train.seed,
        train.cells_per_step,
        style="masked",
        ratios=(config.mask_ratio,),
        panel=tokens.panel,
        features=tokens.features,
        hide_whole=config.hide_whole,
        columns=columns,
        translation=Translation.to(tokens.vocabulary),
    )


def multiomic_model(base: ModelConfig, tokens: MultiomicTokens, *, num_batch_labels: int = 0) -> ModelConfig:
    """Return the model that ``base`` becomes: more tokens, modality embeddings and, with batches, what these need."""
    changes = {
        "vocabulary_size": tokens.vocabulary.size,
        "num_modalities": GENES + len(tokens.names),
        "num_batch_labels": num_batch_labels,
        "decoders_see_batch": num_batch_labels > 0,
        "batch_discriminator": num_batch_labels > 0,
        "generative": False,
        "num_labels": 0,
    }
    return ModelConfig(**{**base.model_dump(), **changes})


@dataclass(frozen=True)
class MultiomicObjective:
    """The losses of the recipe, over the minibatches of ``multiomic_stream``."""

    config: MultiomicConfig
    names: tuple[str, ...]  # of the modalities from code 1 on
    sizes: tuple[int, ...]  # tokens per cell of each
    first_ids: tuple[int, ...]  # of the further modalities
    cls_id: int
    pad_id: int
    scope: Scope = "cell"

    @staticmethod
    def of(config: MultiomicConfig, tokens: MultiomicTokens) -> MultiomicObjective:
        """Build the objective for these tokens."""
        first_ids = tuple(part.first_id for part in tokens.features)
        ids = tokens.vocabulary.cls_id, tokens.vocabulary.pad_id
        return MultiomicObjective(config, tokens.names, tokens.sizes, first_ids, *ids)

    def prepare(self, batch: StepBatch) -> MaskedMinibatch:
        """Cells with hidden tokens, the modality of each token and, if there are batches, their labels."""
        hidden = hide(batch, pad_id=self.pad_id)
        cells = replace(hidden.cells, modalities=torch.from_numpy(self._codes(hidden.cells.gene_ids.numpy())))
        if self.config.batch_key is not None:
            codes = torch.from_numpy(batch.columns[self.config.batch_key].astype(np.int64))
            cells = replace(cells, batch_labels=codes)
        return replace(hidden, cells=cells)

    def weights(self, step: int) -> dict[str, float]:
        """1 for the losses of genes, the weight of features for those of the others, that of the discriminator."""
        own = [1.0, *(self.config.feature_weight for _ in self.first_ids)]
        found = {
            f"{loss}_{name}": weight
            for loss in ("masked", "cell_conditioned")
            for name, weight in zip(self.names, own, strict=True)
        }
        return found if self.config.batch_key is None else found | {"adversarial": self.config.adversarial_weight}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Hidden tokens of each modality, and cells."""
        assert batch.masked is not None, "the stream must be masked"
        codes = self._codes(batch.gene_ids[batch.masked != batch.values])
        hidden = np.bincount(codes, minlength=GENES + len(self.names))[GENES:]
        found = {
            f"{loss}_{name}": int(count)
            for loss in ("masked", "cell_conditioned")
            for name, count in zip(self.names, hidden, strict=True)
        }
        return found if self.config.batch_key is None else found | {"adversarial": batch.num_cells}

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Cells, tokens, and operations of a pass with both decoders and backward."""
        return measure_every_token(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Summed squared errors of each modality; those from the cell embedding if the model has that decoder."""
        assert isinstance(prepared, MaskedMinibatch)
        output: ModelOutput = model(prepared.cells)
        losses = self._by_modality("masked", output.expression.value[prepared.places], prepared)
        if output.cell_conditioned is not None:
            losses |= self._by_modality("cell_conditioned", output.cell_conditioned.value[prepared.places], prepared)
        if output.batches_BK is not None:
            assert prepared.cells.batch_labels is not None, "prepare adds the batch labels"
            losses["adversarial"] = classification_loss(output.batches_BK, prepared.cells.batch_labels)
        return losses

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Squared errors in which each modality counts the same, with sums of the targets, and those of each one."""
        assert isinstance(prepared, MaskedMinibatch)
        output: ModelOutput = model(prepared.cells)
        predicted_U = output.expression.value[prepared.places]
        codes_U = self._hidden_codes(prepared) - GENES
        scales = torch.tensor([max(self.sizes) / size for size in self.sizes], device=predicted_U.device)
        conditioned_U = None if output.cell_conditioned is None else output.cell_conditioned.value[prepared.places]
        judged = _weighted(predicted_U, conditioned_U, prepared.targets, scales[codes_U])
        return judged | self._by_modality("masked", predicted_U, prepared)

    def _by_modality(self, loss: str, predicted_U: Tensor, prepared: MaskedMinibatch) -> dict[str, SummedLoss]:
        """Squared errors of the hidden tokens of each modality."""
        codes_U = self._hidden_codes(prepared)
        return {
            f"{loss}_{name}": squared_error(predicted_U[mine], prepared.targets[mine])
            for name, mine in self._masks(codes_U)
        }

    def _masks(self, codes_U: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each modality with the places of its hidden tokens."""
        for number, name in enumerate(self.names):
            yield name, codes_U == GENES + number

    @staticmethod
    def _hidden_codes(prepared: MaskedMinibatch) -> Tensor:
        """The modality of each hidden token, (U,)."""
        assert prepared.cells.modalities is not None, "prepare adds the modalities"
        return prepared.cells.modalities[prepared.places]

    def _codes(self, token_ids: np.ndarray) -> np.ndarray:
        """The modality of each token."""
        return modality_codes(token_ids, self.first_ids, cls_id=self.cls_id)


def _weighted(
    predicted_U: Tensor, conditioned_U: Tensor | None, targets_U: Tensor, weights_U: Tensor
) -> dict[str, SummedLoss]:
    """Return what ``judge_expression`` does, with a weight for each hidden token."""
    count = weights_U.sum()
    sums = {"masked": (weights_U * (predicted_U.float() - targets_U).square()).sum()}
    if conditioned_U is not None:
        sums["cell_conditioned"] = (weights_U * (conditioned_U.float() - targets_U).square()).sum()
    sums["target"] = (weights_U * targets_U).sum()
    sums["target_square"] = (weights_U * targets_U.square()).sum()
    return {name: SummedLoss(total, count) for name, total in sums.items()}
