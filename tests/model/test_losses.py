"""Losses against their plain formulas, and the property they exist for: parts add up to the whole."""

from __future__ import annotations

import math

import torch

from cytoray.model.losses import classification_loss, expression_loss, hierarchical_loss


def test_expression_loss_is_the_sum_of_counted_squares() -> None:
    predicted = torch.tensor([[1.0, 2.0, 9.0], [4.0, 5.0, 6.0]], requires_grad=True)
    target = torch.tensor([[0.0, 4.0, float("nan")], [4.0, 5.0, 3.0]])
    counted = torch.tensor([[True, True, False], [False, True, True]])
    loss = expression_loss(predicted, target, counted_BL=counted)
    assert loss.total.item() == 1 + 4 + 0 + 9
    assert loss.count.item() == 4
    assert loss.mean.item() == 14 / 4
    loss.total.backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[2.0, -4.0, 0.0], [0.0, 0.0, 6.0]]))


def test_nothing_counted_gives_zero_not_nan() -> None:
    loss = expression_loss(torch.ones(2, 3), torch.zeros(2, 3), counted_BL=torch.zeros(2, 3, dtype=torch.bool))
    assert (loss.total.item(), loss.count.item(), loss.mean.item()) == (0.0, 0, 0.0)


def test_sums_over_unequal_parts_give_the_loss_of_the_whole() -> None:
    torch.manual_seed(0)
    predicted, target, counted = torch.randn(7, 5), torch.randn(7, 5), torch.rand(7, 5) < 0.4
    whole = expression_loss(predicted, target, counted_BL=counted)
    parts = [expression_loss(predicted[rows], target[rows], counted_BL=counted[rows]) for rows in ([0], range(1, 7))]
    total, count = sum(part.total for part in parts), sum(part.count for part in parts)
    torch.testing.assert_close(total / count, whole.mean)


def test_reduced_precision_predictions_are_compared_in_full_precision() -> None:
    predicted = torch.tensor([[40.0]], dtype=torch.bfloat16)
    loss = expression_loss(predicted, torch.tensor([[40.1]]), counted_BL=torch.tensor([[True]]))
    assert loss.total.dtype == torch.float32
    assert abs(loss.total.item() - 0.01) < 1e-5  # in bfloat16 40.1 would be 40.0 and the loss 0


def test_classification_loss_is_the_summed_cross_entropy() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0], [0.0, 0.0]])
    loss = classification_loss(logits, torch.tensor([1, 0, 1]))
    assert abs(loss.total.item() - (-math.log(3 / 4) + 2 * math.log(2))) < 1e-6
    assert loss.count.item() == 3


def test_hierarchical_loss_counts_the_labels_below_as_right() -> None:
    """Labels T, CD4 T, B; the first contains the second."""
    below = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    logits = torch.tensor([[1.0, 2.0, 0.5], [1.0, 2.0, 0.5]], requires_grad=True)
    loss = hierarchical_loss(logits, torch.tensor([0, 1]), below_KK=below)
    total = math.e + math.e**2 + math.e**0.5
    expected = -math.log((math.e + math.e**2) / total) - math.log(math.e**2 / total)
    assert abs(loss.total.item() - expected) < 1e-5
    assert loss.count.item() == 2
    loss.total.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] < 0, "a T cell may be a CD4 T cell"
    assert logits.grad[1, 0] > 0, "a CD4 T cell is more than a T cell"


def test_without_a_hierarchy_it_is_the_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 1])
    plain = classification_loss(logits, labels)
    nested = hierarchical_loss(logits, labels, below_KK=torch.eye(4, dtype=torch.bool))
    torch.testing.assert_close(nested.total, plain.total)
