"""The quickstart says in one line whether embeddings separate cell types, beside PCA."""

from __future__ import annotations

import numpy as np
import pytest

from cytoray.quickstart.embeddings import Separation, measure_separation, neighbour_accuracy
from cytoray.tokens.cells import SparseCells

LABELS = ["a"] * 30 + ["b"] * 30


@pytest.fixture
def cells() -> SparseCells:
    """Two types of cells, each with ten genes of its own beside ten that both have."""
    rng = np.random.default_rng(0)
    rates = np.ones((60, 30))
    rates[:30, :10], rates[30:, 10:20] = 8, 8
    counts = rng.poisson(rates) + 1
    indptr = np.arange(61, dtype=np.int64) * 30
    genes = np.tile(np.arange(30, dtype=np.int32), 60)
    values, ids = counts.ravel().astype(np.float32), np.arange(60, dtype=np.uint64)
    return SparseCells(indptr=indptr, gene_ids=genes, values=values, cell_ids=ids)


def test_pca_separates_what_noise_does_not(cells: SparseCells):
    noise = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    found = measure_separation(cells, LABELS, embeddings=noise)
    assert found.pca > 0.95
    assert found.model < 0.75
    assert "Pretrain longer" in found.text()


def test_good_embeddings_are_called_so(cells: SparseCells):
    apart = np.array([[0.0]] * 30 + [[1.0]] * 30, np.float32) + np.linspace(0, 0.1, 60, dtype=np.float32)[:, None]
    found = measure_separation(cells, LABELS, embeddings=apart)
    assert found.model == 1
    assert "Pretrain longer" not in Separation(1.0, 0.9).text()


def test_neighbours_equal_sklearns_leave_one_out():
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(2)
    points = rng.normal(size=(60, 3)).astype(np.float32)
    points[:30] += 0.8
    expected = cross_val_score(KNeighborsClassifier(5), points, LABELS, cv=LeaveOneOut()).mean()
    assert neighbour_accuracy(points, LABELS) == pytest.approx(expected)
