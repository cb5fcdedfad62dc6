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
        """The mean over the terms; 0 without any."""
        return self.total / self.count.clamp(min=1)


def expression_loss(predicted_BL: Tensor, target_BL: Tensor, *, counted_BL: Tensor) -> SummedLoss:
    """Sum of squared errors where ``counted_BL`` is True; other values, NaN included, are ignored."""
    error_BL = torch.where(counted_BL, predicted_BL - target_BL, 0.0)
    return SummedLoss(error_BL.square().sum(), counted_BL.sum())


def classification_loss(logits_BK: Tensor, labels_B: Tensor) -> SummedLoss:
    """Cross-entropy summed over cells, computed in at least fp32."""
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    total = F.cross_entropy(logits_BK, labels_B, reduction="sum")
    return SummedLoss(total, labels_B.new_full((), labels_B.numel()))


def hierarchical_loss(logits_BK: Tensor, labels_B: Tensor, *, below_KK: Tensor) -> SummedLoss:
    """Cross-entropy of a label or any below it, summed over cells: ``-log`` of the sum of their probabilities.

    ``below_KK[i, j]`` (bool) is True if label j is label i or lies below it. For labels with none below it is
    ``classification_loss`` (hierarchical cross-entropy, Nature Computational Science 2026).
    """
    log_probabilities_BK = F.log_softmax(logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32)), dim=1)
    allowed_BK = log_probabilities_BK.masked_fill(~below_KK[labels_B], -torch.inf)
    return SummedLoss(-allowed_BK.logsumexp(dim=1).sum(), labels_B.new_full((), labels_B.numel()))


def nonzero_loss(probability_BL: Tensor, target_BL: Tensor, *, counted_BL: Tensor) -> SummedLoss:
    """Negative log-likelihood of a value being above zero or not, where ``counted_BL`` is True (zero log-likelihood).

    ``probability_BL`` is that of NOT being zero, as the decoders predict it.
    """
    probability = probability_BL.to(torch.promote_types(probability_BL.dtype, torch.float32))
    terms_BL = F.binary_cross_entropy(probability, (target_BL > 0).to(probability.dtype), reduction="none")
    return SummedLoss(torch.where(counted_BL, terms_BL, 0.0).sum(), counted_BL.sum())


def similarity_loss(cells_BD: Tensor, *, threshold: float) -> SummedLoss:
    """Elastic cell similarity (ECS): cosines of the minibatch's cells pushed away from ``threshold``.

    The mean over all B * B pairs of ``1 - (cosine - threshold)^2``, a cell's cosine with itself, and negative ones,
    counting as 0. It depends on which cells share a minibatch.
    """
    normed_BD = F.normalize(cells_BD.float(), dim=1)
    cosines_BB = F.relu((normed_BD @ normed_BD.T).fill_diagonal_(0.0))
    terms_BB = 1 - (cosines_BB - threshold) ** 2
    return SummedLoss(terms_BB.sum(), torch.full((), terms_BB.numel(), device=terms_BB.device))


def contrastive_loss(first_BD: Tensor, second_BD: Tensor, *, temperature: float = 0.5) -> SummedLoss:
    """Contrastive cell embedding (CCE): of B cells, each seen twice, the two views are to be most alike."""
    cosines_BB = F.normalize(first_BD.float(), dim=1) @ F.normalize(second_BD.float(), dim=1).T
    return classification_loss(cosines_BB / temperature, torch.arange(len(cosines_BB), device=cosines_BB.device))


def supervised_contrast_loss(
    cells_BD: Tensor, labels_B: Tensor, batches_B: Tensor, *, temperature: float
) -> SummedLoss:
    """Supervised contrast, summed over cells that have a positive: another cell of their label, of another batch.

    Cells with a negative label or batch code have none. A term is the mean over a cell's positives of minus the log
    probability of that cell among all others (Khosla et al. 2020). It depends on which cells share a minibatch.
    """
    known_B = (labels_B >= 0) & (batches_B >= 0)
    positive_BB = (labels_B[:, None] == labels_B) & (batches_B[:, None] != batches_B) & known_B[:, None] & known_B
    normed_BD = F.normalize(cells_BD.float(), dim=1)
    logits_BB = (normed_BD @ normed_BD.T / temperature).masked_fill(_diagonal(len(cells_BD), cells_BD), -torch.inf)
    log_shares_BB = logits_BB - logits_BB.logsumexp(dim=1, keepdim=True)
    counts_B = positive_BB.sum(dim=1)
    sums_B = torch.where(positive_BB, log_shares_BB, 0.0).sum(dim=1)
    return SummedLoss(-(sums_B / counts_B.clamp(min=1)).sum(), (counts_B > 0).sum())


def view_contrast_loss(first_BD: Tensor, second_BD: Tensor, *, temperature: float) -> SummedLoss:
    """Contrast of two views of each of B cells (NT-Xent), summed over 2 B views: each is to be most like its other."""
    normed_VD = F.normalize(torch.cat([first_BD, second_BD]).float(), dim=1)
    logits_VV = normed_VD @ normed_VD.T / temperature
    logits_VV = logits_VV.masked_fill(_diagonal(len(normed_VD), logits_VV), -torch.inf)
    return classification_loss(logits_VV, torch.arange(len(normed_VD), device=logits_VV.device).roll(len(first_BD)))


def _diagonal(size: int, like: Tensor) -> Tensor:
    """Return a mask (N, N) of the diagonal."""
    return torch.eye(size, dtype=torch.bool, device=like.device)


def relative_error(predicted_BL: Tensor, target_BL: Tensor, *, counted_BL: Tensor) -> SummedLoss:
    """Sum of ``|predicted - target| / (target + 1e-6)`` where ``counted_BL`` is True; for logging, not for training."""
    terms_BL = (predicted_BL - target_BL).abs() / (target_BL + 1e-6)
    return SummedLoss(torch.where(counted_BL, terms_BL, 0.0).sum(), counted_BL.sum())
