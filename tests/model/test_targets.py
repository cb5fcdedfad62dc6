"""Targets of the head: figures against numpy, and a scale that the head takes in and out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from cytoray.model.heads import CellClassifier
from cytoray.model.targets import ClassTarget, NumberTarget, Scale, points_since_best, summarise


def test_figures_of_numbers_are_those_of_numpy():
    rng = np.random.default_rng(0)
    true = rng.normal(2, 3, (50, 1)).astype(np.float32)
    predicted = (0.5 * true + rng.normal(0, 1, (50, 1))).astype(np.float32)
    found = NumberTarget().judge(torch.from_numpy(predicted), torch.from_numpy(true))
    figures = summarise({name: (each.total / each.count).item() for name, each in found.items()})
    assert figures.keys() == {"regression", "r2", "pearson"}
    assert figures["regression"] == pytest.approx(((predicted - true) ** 2).mean(), rel=1e-5)
    assert figures["r2"] == pytest.approx(
        1 - ((predicted - true) ** 2).sum() / ((true - true.mean()) ** 2).sum(), rel=1e-4
    )
    assert figures["pearson"] == pytest.approx(stats.pearsonr(predicted[:, 0], true[:, 0])[0], rel=1e-4)
    flat = NumberTarget().judge(torch.zeros(4, 1), torch.zeros(4, 1))
    figures = summarise({name: (each.total / each.count).item() for name, each in flat.items()})
    assert np.isnan([figures["r2"], figures["pearson"]]).all(), "constants have neither"


def test_an_outlier_counts_linearly_in_hubers_loss():
    predicted, true = torch.zeros(2, 1), torch.tensor([[0.5], [10.0]])
    losses = {
        kind: NumberTarget(kind).judge(predicted, true)["regression"].total.item() for kind in ("squared", "huber")
    }
    assert losses == pytest.approx({"squared": 100.25, "huber": 0.125 + 9.5})


def test_figures_of_classes():
    outputs = torch.tensor([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
    labels = torch.tensor([0, 0, 2])
    assert ClassTarget().judge(outputs, labels)["accuracy"].mean == pytest.approx(2 / 3)
    below = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    assert ClassTarget(below).judge(outputs, labels)["accuracy"].mean == 1
    other = summarise({"classification": 1.0, "accuracy": 0.5})
    assert other == {"classification": 1.0, "accuracy": 0.5}


def test_a_head_takes_a_scale_in_and_out():
    torch.manual_seed(0)
    head, cells = CellClassifier(8, num_labels=2, num_layers=2), torch.randn(5, 8)
    numbers = torch.tensor([[1_000.0, 3.0], [3_000.0, 3.0]])
    scale = Scale.of(numbers)
    assert scale.standardise(numbers).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    before = head(cells)
    scale.release(head)
    torch.testing.assert_close(head(cells), before * torch.tensor([1_000.0, 1.0]) + torch.tensor([2_000.0, 3.0]))
    scale.absorb(head)
    torch.testing.assert_close(head(cells), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("errors", "since"), [([], 0), ([3.0], 0), ([3.0, 2.0], 0), ([2.0, 2.0, 3.0], 2)])
def test_points_since_the_best(errors: list[float], since: int):
    assert points_since_best(errors) == since
