"""Whole-cell decoding (WCED): the embedding of a thinned cell predicts how the whole cell differs from the others.

The decoder is that of masked expression from the cell embedding (GEPC/MVC), with the same shapes. Its targets are
standardised by gene: the mean of a gene, which carries most of a plain loss, is no longer to be learned.
"""

# B cells, T tokens of all cells, U queries of all cells, V genes of the vocabulary

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.members import ObsColumn
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.whole_cells import QUERIES, SECOND_VIEW, WholeCellOptions
from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss, supervised_contrast_loss, view_contrast_loss
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedGenerativeMinibatch, PackedMinibatch
from cytoray.training.config import GenerativeConfig, WholeCellConfig
from cytoray.training.gene_statistics import GeneStatistics
from cytoray.training.objectives import (
    Amounts,
    GenerativeObjective,
    Prepared,
    Scope,
    judge_expression,
    squared_error,
)


@dataclass(frozen=True)
class WholeCellMinibatch:
    """Thinned cells in two parts, and genes of the whole cells with their standardised expression."""

    cells: PackedGenerativeMinibatch
    gene_ids: Tensor  # int64 (U,)
    targets: Tensor  # float32 (U,)
    weights: Tensor  # float32 (U,)
    lengths: tuple[int, ...]  # (B,) queries of each cell
    second_view: PackedMinibatch | None = None
    labels: Tensor | None = None  # int64 (B,), -1 without one
    batches: Tensor | None = None  # int64 (B,), -1 without one

    def to(self, device: torch.device | str) -> WholeCellMinibatch:
        """Return the same cells with their tensors on ``device``."""
        moved: dict[str, Any] = {"cells": self.cells.to(device)}
        for name in ("gene_ids", "targets", "weights", "labels", "batches"):
            tensor = getattr(self, name)
            moved[name] = None if tensor is None else tensor.to(device, non_blocking=True)
        second_view = None if self.second_view is None else self.second_view.to(device)
        return replace(self, second_view=second_view, **moved)


def whole_cell_stream(options: StreamOptions, config: WholeCellConfig, statistics: GeneStatistics) -> StreamOptions:
    """Return the stream of thinned cells with genes to decode and, for a contrast, their types or second views."""
    panel, contrast = statistics.panel(config.min_share), config.contrast
    if contrast is None:
        return replace(options, whole_cells=WholeCellOptions(panel, config.num_queries, config.thinning))
    columns = () if contrast.label_key is None else (contrast.label_key, contrast.batch_key)
    views = WholeCellOptions(panel, config.num_queries, config.thinning, second_view=contrast.view_weight > 0)
    return replace(
        options,
        whole_cells=views,
        columns=tuple(ObsColumn(column, required=False) for column in columns),
        cells_per_minibatch=contrast.cells_per_minibatch,
    )


@dataclass(frozen=True)
class WholeCellObjective:
    """Whole-cell decoding beside masked expression, over ``whole_cell_stream``."""

    config: GenerativeConfig
    pad_id: int
    statistics: GeneStatistics

    @property
    def scope(self) -> Scope:
        """Return ``minibatch`` if cells are compared."""
        return "cell" if self.whole.contrast is None else "minibatch"

    @property
    def whole(self) -> WholeCellConfig:
        """Return the settings of whole-cell decoding."""
        assert self.config.whole_cell is not None, "the configuration decodes no whole cells"
        return self.config.whole_cell

    @property
    def masked(self) -> GenerativeObjective:
        """Return the objective of the hidden genes, without its second pass."""
        return GenerativeObjective(self.config.model_copy(update={"second_pass_after": None}), self.pad_id)

    def prepare(self, batch: StepBatch) -> WholeCellMinibatch:
        """Return the known and unknown genes, and the queries with standardised targets."""
        assert batch.modalities is not None, "the stream must have whole cells"
        queries, statistics = batch.modalities[QUERIES], self.statistics
        gene_ids = queries["feature_ids"].astype(np.int64)
        targets = (queries["values"] - statistics.mean[gene_ids]) / statistics.deviation[gene_ids]
        prepared = WholeCellMinibatch(
            self.masked.prepare(batch),
            torch.from_numpy(gene_ids),
            torch.from_numpy(np.clip(targets, -self.whole.clip, self.whole.clip).astype(np.float32)),
            torch.from_numpy(queries["weights"].astype(np.float32)),
            tuple(queries["lengths"].tolist()),
        )
        return self._with_partners(prepared, batch)

    def _with_partners(self, prepared: WholeCellMinibatch, batch: StepBatch) -> WholeCellMinibatch:
        """Return the minibatch with what cells are compared by."""
        contrast, modalities = self.whole.contrast, batch.modalities or {}
        if contrast is not None and contrast.label_key is not None:
            labels, batches = (
                torch.from_numpy(batch.columns[key].astype(np.int64))
                for key in (contrast.label_key, contrast.batch_key)
            )
            prepared = replace(prepared, labels=labels, batches=batches)
        if SECOND_VIEW in modalities:
            view = modalities[SECOND_VIEW]
            tokens = PackedMinibatch(
                torch.from_numpy(view["feature_ids"].astype(np.int64)),
                torch.from_numpy(view["values"].astype(np.float32)),
                tuple(view["lengths"].tolist()),
                batch.cell_ids,
            )
            prepared = replace(prepared, second_view=tokens)
        return prepared

    def weights(self, step: int) -> dict[str, float]:
        """Return the configured weights."""
        masked = {"masked": self.whole.masked_weight} if self.whole.masked_weight else {}
        return {"whole_cell": self.whole.weight} | masked | self._contrast_weights

    @property
    def _contrast_weights(self) -> dict[str, float]:
        """Return the weights of the losses that compare cells."""
        contrast, weights = self.whole.contrast, {}
        if contrast is not None and contrast.label_key is not None:
            weights["label_contrast"] = contrast.label_weight
        if contrast is not None and contrast.view_weight:
            weights["view_contrast"] = contrast.view_weight
        return weights

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Return the number of queries, and of hidden genes."""
        assert batch.modalities is not None, "the stream must have whole cells"
        counts = {"whole_cell": int(batch.modalities[QUERIES]["lengths"].sum())}
        if self.whole.masked_weight:
            counts["masked"] = self.masked.counts(batch)["masked"]
        if "label_contrast" in self._contrast_weights:
            counts["label_contrast"] = self._count_partnered(batch)
        if "view_contrast" in self._contrast_weights:
            counts["view_contrast"] = 2 * batch.num_cells
        return counts

    def _count_partnered(self, batch: StepBatch) -> int:
        """Return the number of cells with another cell of their type, of another batch, in their minibatch."""
        contrast = self.whole.contrast
        assert contrast is not None, "no cells are compared"
        assert contrast.label_key is not None, "no types are compared"
        assert batch.minibatches is not None, "the stream must have cells_per_minibatch"
        labels, batches = batch.columns[contrast.label_key], batch.columns[contrast.batch_key]
        known = (labels >= 0) & (batches >= 0)
        rows = np.stack([batch.minibatches[known], labels[known], batches[known]])
        groups, sizes = np.unique(rows, axis=1, return_counts=True)
        _, type_of, batches_of_type = np.unique(groups[:2], axis=1, return_inverse=True, return_counts=True)
        return int(sizes[batches_of_type[type_of] > 1].sum())

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Return known and unknown tokens, and the operations of a pass over them with backward."""
        return self.masked.measure(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Return weighted squared errors of the queries and, if they are predicted, those of the hidden genes."""
        assert isinstance(prepared, WholeCellMinibatch)
        if self.whole.masked_weight:
            first = model.forward_generative(prepared.cells)
            cells_BD = first.cells_BD
            masked = {"masked": squared_error(first.expression, prepared.cells.unknown_targets)}
        else:
            cells_BD, masked = model.embed(prepared.cells.known), {}
        losses = {"whole_cell": self._decode(model, cells_BD, prepared)} | masked
        return losses | self._compare(model, cells_BD, prepared)

    def _compare(self, model: ScGPT, cells_BD: Tensor, prepared: WholeCellMinibatch) -> dict[str, SummedLoss]:
        """Return the losses that compare the cells of a minibatch."""
        contrast, losses = self.whole.contrast, {}
        if contrast is None:
            return {}
        temperature = contrast.temperature
        if prepared.labels is not None and prepared.batches is not None:
            losses["label_contrast"] = supervised_contrast_loss(
                cells_BD, prepared.labels, prepared.batches, temperature=temperature
            )
        if prepared.second_view is not None:
            second_BD = model.embed(prepared.second_view)
            losses["view_contrast"] = view_contrast_loss(cells_BD, second_BD, temperature=temperature)
        return losses

    def judge(self, model: ScGPT, prepared: Prepared) -> dict[str, SummedLoss]:
        """Return the errors of the queries beside that of each gene's mean, and those of the hidden genes."""
        assert isinstance(prepared, WholeCellMinibatch)
        first = model.forward_generative(prepared.cells)
        found = self._decode(model, first.cells_BD, prepared)
        mean = SummedLoss((prepared.weights * prepared.targets.square()).sum(), found.count)
        hidden = judge_expression(first.expression, None, prepared.cells.unknown_targets)
        return {"whole_cell": found, "whole_cell_of_mean": mean} | (hidden if self.whole.masked_weight else {})

    @staticmethod
    def _decode(model: ScGPT, cells_BD: Tensor, prepared: WholeCellMinibatch) -> SummedLoss:
        """Return the weighted squared error of the queries, in fp32."""
        predicted_U = model.decode_cells(cells_BD, prepared.gene_ids, prepared.lengths).float()
        total = (prepared.weights * (predicted_U - prepared.targets).square()).sum()
        return SummedLoss(total, torch.full((), len(prepared.targets), device=total.device))
