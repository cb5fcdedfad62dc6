"""Targets of the head on the cell embedding, classes or numbers: their loss and figures, in every kind of training."""

# B cells, K outputs

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from cytoray.model.config import NumberLoss
from cytoray.model.heads import CellClassifier
from cytoray.model.losses import SummedLoss, classification_loss, hierarchical_loss

HEAD, LABEL_TYPE = "head", "label_type"  # keys of a bundle's lineage
REGRESSION, NUMBER = "regression", "float"  # their values if its head predicts numbers, and has learned to
_MOMENTS = ("true", "true_square", "predicted", "predicted_square", "product")


class HeadTarget(Protocol):
    """How the outputs of a head are judged."""

    def judge(self, outputs_BK: Tensor, targets: Tensor) -> dict[str, SummedLoss]:
        """Return figures summed over cells, the loss first; ``summarise`` completes their means."""


@dataclass(frozen=True, eq=False)
class ClassTarget:
    """Classes: cross-entropy; with ``below_KK`` (bool) of ``LabelTree.below``, of a class or any below it."""

    below_KK: Tensor | None = None

    def judge(self, outputs_BK: Tensor, targets: Tensor) -> dict[str, SummedLoss]:
        """Return ``classification`` and the number of correct cells (their class or one below): ``accuracy``."""
        best_B = outputs_BK.argmax(dim=1)
        if self.below_KK is None:
            loss, right_B = classification_loss(outputs_BK, targets), best_B == targets
        else:
            below_KK = self.below_KK.to(outputs_BK.device)
            loss = hierarchical_loss(outputs_BK, targets, below_KK=below_KK)
            right_B = below_KK[targets, best_B]
        return {"classification": loss, "accuracy": SummedLoss(right_B.sum(), loss.count)}


@dataclass(frozen=True)
class NumberTarget:
    """Standardised numbers (B, K): squared error, or Huber's, which is linear beyond one standard deviation."""

    loss: NumberLoss = "squared"

    def judge(self, outputs_BK: Tensor, targets: Tensor) -> dict[str, SummedLoss]:
        """Return ``regression`` (averaged over outputs) and the moments that R2 and correlation follow from."""
        outputs_BK, num_outputs = outputs_BK.float(), outputs_BK.shape[1]
        error = F.huber_loss if self.loss == "huber" else F.mse_loss
        count = torch.full((), len(outputs_BK), device=outputs_BK.device)
        moments = {
            "true": targets,
            "true_square": targets.square(),
            "predicted": outputs_BK,
            "predicted_square": outputs_BK.square(),
            "product": outputs_BK * targets,
        }
        sums = {"regression": error(outputs_BK, targets, reduction="sum"), **{n: v.sum() for n, v in moments.items()}}
        return {name: SummedLoss(total / num_outputs, count) for name, total in sums.items()}


def summarise(means: Mapping[str, float]) -> dict[str, float]:
    """Replace the moments of ``NumberTarget`` by ``r2`` and ``pearson`` of all outputs together; NaN for constants."""
    if not set(_MOMENTS) <= means.keys():
        return dict(means)
    true, true_square, predicted, predicted_square, product = (means[name] for name in _MOMENTS)
    spread, own_spread = true_square - true**2, predicted_square - predicted**2
    error = predicted_square - 2 * product + true_square
    both = math.sqrt(max(spread, 0.0) * max(own_spread, 0.0))
    figures = {
        "r2": 1 - error / spread if spread > 0 else math.nan,
        "pearson": (product - true * predicted) / both if both > 0 else math.nan,
    }
    return {name: value for name, value in means.items() if name not in _MOMENTS} | figures


def points_since_best(errors: Sequence[float]) -> int:
    """Return how many of the last points are no better than the best one before them; 0 without any.

    Training stops when they reach its patience.
    """
    return len(errors) - 1 - errors.index(min(errors)) if errors else 0


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and standard deviation of numbers, by output; a head learns them standardised and then gives their own."""

    mean_K: Tensor  # float64
    spread_K: Tensor

    @staticmethod
    def of(targets: Tensor) -> Scale:
        """Measure the numbers (C, K); the spread of constant ones is 1."""
        wide = targets.double()
        spread_K = wide.std(dim=0, correction=0)
        return Scale(wide.mean(dim=0), torch.where(spread_K > 0, spread_K, 1.0))

    def standardise(self, targets: Tensor) -> Tensor:
        """Return the numbers (C, K) with mean 0 and standard deviation 1, float32."""
        return ((targets.double() - self.mean_K) / self.spread_K).float()

    @torch.no_grad()
    def release(self, head: CellClassifier) -> None:
        """Let a head that gives standardised numbers give the numbers themselves."""
        layer = head.out_layer
        mean_K, spread_K = self.mean_K.to(layer.bias), self.spread_K.to(layer.bias)
        layer.weight.mul_(spread_K[:, None])
        layer.bias.mul_(spread_K).add_(mean_K)

    @torch.no_grad()
    def absorb(self, head: CellClassifier) -> None:
        """Undo ``release``."""
        layer = head.out_layer
        mean_K, spread_K = self.mean_K.to(layer.bias), self.spread_K.to(layer.bias)
        layer.bias.sub_(mean_K).div_(spread_K)
        layer.weight.div_(spread_K[:, None])

    @contextmanager
    def within(self, head: CellClassifier, *, is_trained: bool) -> Iterator[None]:
        """Let ``head`` learn standardised numbers within the block; one that was trained already gives its own."""
        if is_trained:
            self.absorb(head)
        gives_own = is_trained
        try:
            yield
            gives_own = True
        finally:  # a new head that failed to learn is left as it is
            if gives_own:
                self.release(head)
