"""Perturbed cells from control cells as an objective of the ordinary loop: scGPT's perturbation recipe.

The model sees the log-normalised expression of a control cell and flags of the perturbed genes, and predicts the
expression of a perturbed cell: factor times the control's value plus offset, gene by gene. It is judged by the mean
change that it predicts for perturbations that are held out.
"""

# B cells, W genes per cell, T = B * W, G genes of the panel, P perturbations, H held-out perturbations

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedMinibatch, widen
from cytoray.training.objectives import Amounts, Prepared, Scope, measure_every_token

NUM_FLAGS = 3  # as in the original: not perturbed, perturbed, padding
Float64 = npt.NDArray[np.float64]


def perturbation_model(base: ModelConfig, *, vocabulary_size: int, dropout: float) -> ModelConfig:
    """Return the model that ``base`` becomes: flags, the affine decoder, continuous values, no other heads."""
    changes: dict[str, Any] = {
        "vocabulary_size": vocabulary_size,
        "num_perturbation_flags": NUM_FLAGS,
        "expression_decoder": "affine",
        "value_style": "continuous",
        "num_value_bins": 0,
        "cell_conditioned_decoder": "none",
        "generative": False,
        "num_labels": 0,
        "num_batch_labels": 0,
        "decoders_see_batch": False,
        "batch_discriminator": False,
        "num_modalities": 0,
        "zero_probability": False,
        "dropout": dropout,
    }
    return ModelConfig(**{**base.model_dump(), **changes})


@dataclass(frozen=True)
class PerturbedMinibatch:
    """Control cells with flags of the perturbed genes, and the expression to predict."""

    cells: PackedMinibatch
    targets: Tensor  # float32 (T,)
    weights: Tensor  # float32 (T,), 0 for tokens that are not predicted
    counted: Tensor  # bool (T,)
    places: Tensor  # int64 (T,) in the panel
    codes: Tensor  # int64 (T,) of the cell's perturbation

    def to(self, device: torch.device | str) -> PerturbedMinibatch:
        """The same cells with their tensors on ``device``."""
        tensors = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if name != "cells"}
        return replace(self, cells=self.cells.to(device), **tensors)


@dataclass(frozen=True, eq=False)
class HeldOutEffects:
    """Mean changes of perturbations that are held out, and what the mean of the others predicts for them."""

    codes: npt.NDArray[np.int64]  # (H,) of the perturbation's column
    truth: Float64  # (H, G)
    mean_of_seen: Float64  # (G,)
    weights: Float64  # (H, G) of squared errors; rows sum to 1
    scored: npt.NDArray[np.bool_]  # (H, G) genes that are correlated: predicted and not perturbed

    def figures(self, predicted_HG: Float64) -> dict[str, float]:
        """Return the mean weighted error and the mean Pearson correlation of predicted changes over perturbations."""
        errors = (self.weights * (predicted_HG - self.truth) ** 2).sum(axis=1)
        rows = zip(predicted_HG, self.truth, self.scored, strict=True)
        correlations = [_correlation(one[use], other[use]) for one, other, use in rows]
        return {"delta_error": float(errors.mean()), "pearson_delta": float(np.mean(correlations))}


@dataclass(frozen=True, eq=False)
class PerturbationObjective:
    """Squared error of the genes of perturbed cells, predicted from control cells."""

    pad_id: int
    column: str  # of obs, with the perturbation
    panel: npt.NDArray[np.int64]  # (G,) ascending
    predicted: npt.NDArray[np.bool_]  # (G,) genes that were measured
    gene_weights: npt.NDArray[np.float32]  # (P, G), of mean 1 over the predicted genes
    held_out: HeldOutEffects | None = None
    scope: Scope = "cell"

    def prepare(self, batch: StepBatch) -> PerturbedMinibatch:
        """Control cells as input, the perturbed cells' values as targets."""
        assert batch.source_values is not None, "the stream must have pairs"
        assert batch.perturbations is not None, "the stream must have flags of perturbed genes"
        cells = widen(batch.gene_ids, batch.source_values, pad_id=self.pad_id, cell_ids=batch.cell_ids)
        flags = torch.from_numpy(batch.perturbations.astype(np.int64))
        places_BW = np.searchsorted(self.panel, batch.gene_ids)
        codes_BW = np.broadcast_to(batch.columns[self.column].astype(np.int64)[:, None], places_BW.shape)
        return PerturbedMinibatch(
            replace(cells, perturbations=flags).packed(),
            torch.from_numpy(batch.values.astype(np.float32)).flatten(),
            torch.from_numpy(self.gene_weights[codes_BW, places_BW]).flatten(),
            torch.from_numpy(self.predicted[places_BW]).flatten(),
            torch.from_numpy(places_BW).flatten(),
            torch.from_numpy(codes_BW.copy()).flatten(),
        )

    def weights(self, step: int) -> dict[str, float]:
        """1 for the only loss."""
        return {"expression": 1.0}

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Predicted genes of the cells."""
        return {"expression": int(self.predicted[np.searchsorted(self.panel, batch.gene_ids)].sum())}

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Cells, tokens, and operations of a pass with the decoder and backward."""
        return measure_every_token(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Summed squared error, by the weight of each gene: ``expression``."""
        assert isinstance(prepared, PerturbedMinibatch)
        return {"expression": _squared_error(model.predict_expression(prepared.cells), prepared)}

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Squared error and, of each held-out perturbation and gene, the sum of predicted changes and their number."""
        assert isinstance(prepared, PerturbedMinibatch)
        predicted_T = model.predict_expression(prepared.cells)
        figures = {"expression": _squared_error(predicted_T, prepared)}
        if self.held_out is not None:
            figures["changes"] = self._changes(predicted_T.float() - prepared.cells.values, prepared)
        return figures

    def summarise(self, totals: dict[str, Tensor], means: dict[str, float]) -> dict[str, float]:
        """Return the figures of the changes of all held-out cells, beside those of the mean of seen perturbations."""
        if self.held_out is None:
            return means
        sums, counts = totals["changes"].cpu().numpy().reshape(2, *self.held_out.truth.shape)
        own = self.held_out.figures(sums / np.maximum(counts, 1))
        mean = self.held_out.figures(np.broadcast_to(self.held_out.mean_of_seen, sums.shape))
        return own | {f"mean_of_seen_{name}": value for name, value in mean.items()} | means

    def _changes(self, changes_T: Tensor, prepared: PerturbedMinibatch) -> SummedLoss:
        """Return sums and counts (2 * H * G,) of changes by held-out perturbation and gene, and the number of all."""
        assert self.held_out is not None
        number = np.full(len(self.gene_weights), -1)
        number[self.held_out.codes] = np.arange(len(self.held_out.codes))
        rows_T = torch.from_numpy(number).to(changes_T.device)[prepared.codes]
        mine, size = rows_T >= 0, self.held_out.truth.size
        cells_T = (rows_T * len(self.panel) + prepared.places)[mine]
        sums = torch.zeros(2 * size, dtype=torch.float64, device=changes_T.device)
        sums.index_add_(0, cells_T, changes_T[mine].double())
        sums.index_add_(0, cells_T + size, torch.ones_like(changes_T[mine], dtype=torch.float64))
        return SummedLoss(sums, mine.sum())


def _squared_error(predicted_T: Tensor, prepared: PerturbedMinibatch) -> SummedLoss:
    """Sum of weighted squared errors, in fp32."""
    errors_T = prepared.weights * (predicted_T.float() - prepared.targets).square()
    return SummedLoss(errors_T.sum(), prepared.counted.sum())


def _correlation(one: Float64, other: Float64) -> float:
    """Return Pearson's correlation; 0 if either is constant."""
    one, other = one - one.mean(), other - other.mean()
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other / lengths) if lengths > 1e-12 else 0.0
