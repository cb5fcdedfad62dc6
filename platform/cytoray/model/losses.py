"""Losses as a sum and a count, so that training can divide by the count over all ranks and micro-batches."""

# B cells, L tokens, K labels

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class SummedLoss:
    """A loss before division: ``total`` (scalar, differentiable) over ``count`` (scalar int64) terms."""

    total: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The loss of these terms alone; 0 where there is none."""
        return self.total / self.count.clamp(min=1)


def expression_loss(predicted_BL: Tensor, target_BL: Tensor, *, counted_BL: Tensor) -> SummedLoss:
    """Sum of squared errors where ``counted_BL`` is True; whatever stands elsewhere, NaN included, has no influence."""
    error_BL = torch.where(counted_BL, predicted_BL - target_BL, 0.0)
    return SummedLoss(error_BL.square().sum(), counted_BL.sum())


def classification_loss(logits_BK: Tensor, labels_B: Tensor) -> SummedLoss:
    """Cross-entropy summed over cells, computed in at least fp32."""
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    total = F.cross_entropy(logits_BK, labels_B, reduction="sum")
    return SummedLoss(total, labels_B.new_tensor(labels_B.numel()))
