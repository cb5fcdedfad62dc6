"""Whole-cell decoding (WCED): the embedding of a thinned cell predicts how the whole cell differs from the others.

The decoder is that of masked expression from the cell embedding (GEPC/MVC), with the same shapes. Its targets are
standardised by gene: the mean of a gene, which carries most of a plain loss, is no longer to be learned.
"""

# B cells, T tokens of all cells, U queries of all cells, V genes of the vocabulary

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cytoray.corpus.streaming.batches import StepBatch
from cytoray.corpus.streaming.options import StreamOptions
from cytoray.corpus.streaming.whole_cells import QUERIES, WholeCellOptions
from cytoray.model.config import ModelConfig
from cytoray.model.losses import SummedLoss
from cytoray.model.transformer import ScGPT
from cytoray.tokens.collator import PackedGenerativeMinibatch
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

    def to(self, device: torch.device | str) -> WholeCellMinibatch:
        """Return the same cells with their tensors on ``device``."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in ("gene_ids", "targets", "weights")}
        return replace(self, cells=self.cells.to(device), **moved)


def whole_cell_stream(options: StreamOptions, config: WholeCellConfig, statistics: GeneStatistics) -> StreamOptions:
    """Return the stream of thinned cells with genes to decode."""
    panel = statistics.panel(config.min_share)
    return replace(options, whole_cells=WholeCellOptions(panel, config.num_queries, config.thinning))


@dataclass(frozen=True)
class WholeCellObjective:
    """Whole-cell decoding beside masked expression, over ``whole_cell_stream``."""

    config: GenerativeConfig
    pad_id: int
    statistics: GeneStatistics
    scope: Scope = "cell"

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
        return WholeCellMinibatch(
            self.masked.prepare(batch),
            torch.from_numpy(gene_ids),
            torch.from_numpy(np.clip(targets, -self.whole.clip, self.whole.clip).astype(np.float32)),
            torch.from_numpy(queries["weights"].astype(np.float32)),
            tuple(queries["lengths"].tolist()),
        )

    def weights(self, step: int) -> dict[str, float]:
        """Return the configured weights."""
        masked = {"masked": self.whole.masked_weight} if self.whole.masked_weight else {}
        return {"whole_cell": self.whole.weight} | masked

    def counts(self, batch: StepBatch) -> dict[str, int]:
        """Return the number of queries, and of hidden genes."""
        assert batch.modalities is not None, "the stream must have whole cells"
        counts = {"whole_cell": int(batch.modalities[QUERIES]["lengths"].sum())}
        return counts | ({"masked": self.masked.counts(batch)["masked"]} if self.whole.masked_weight else {})

    def measure(self, model: ModelConfig, batch: StepBatch) -> Amounts:
        """Return known and unknown tokens, and the operations of a pass over them with backward."""
        return self.masked.measure(model, batch)

    def losses(self, model: ScGPT, prepared: Prepared, step: int) -> dict[str, SummedLoss]:
        """Return weighted squared errors of the queries and, if they are predicted, those of the hidden genes."""
        assert isinstance(prepared, WholeCellMinibatch)
        if not self.whole.masked_weight:
            return {"whole_cell": self._decode(model, model.embed(prepared.cells.known), prepared)}
        first = model.forward_generative(prepared.cells)
        return {
            "whole_cell": self._decode(model, first.cells_BD, prepared),
            "masked": squared_error(first.expression, prepared.cells.unknown_targets),
        }

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
