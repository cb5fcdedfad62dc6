"""Stability compares a model's answers before and after changes that should not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cytoray.model.bundle import ModelBundle
from cytoray.model.predictor import Predictions
from cytoray.model.stability import compare, drop_genes, measure_stability, thin_counts
from cytoray.tokens.inference import DRAWN


def test_changed_labels_and_turned_embeddings_are_counted():
    embeddings = np.array([[1, 0], [1, 0], [1, 0], [np.nan, np.nan]], np.float32)
    turned = np.array([[1, 0], [0.6, 0.8], [0, 1], [1, 0]], np.float32)
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [np.nan, np.nan]], np.float32)
    first = Predictions(embeddings, probabilities, ("B", "T"))
    second = Predictions(turned, probabilities[:, ::-1].copy(), ("B", "T"))
    second.probabilities[0] = [0.6, 0.4]  # type: ignore[index]
    found = compare(first, second)
    assert (found.labels_kept, found.num_cells) == (pytest.approx(1 / 3), 3)
    assert found.median_cosine == pytest.approx(0.6)


def test_a_seed_matters_to_drawn_inference_only(bundle: ModelBundle, make_cells):
    cells = make_cells([40, 23, 60, 55])
    stable, drawn = (measure_stability(asked, cells) for asked in (bundle, replace(bundle, inference=DRAWN)))
    assert list(stable) == ["another seed", "1 % of genes dropped", "counts thinned to 90 %"][: len(stable)]
    assert stable["another seed"].labels_kept == 1
    assert stable["another seed"].median_cosine == pytest.approx(1, abs=1e-6)
    assert drawn["another seed"].median_cosine < 0.9999


def test_genes_are_dropped_from_all_cells_alike_and_counts_only_fall(make_cells):
    cells = make_cells([60, 60, 60])
    dropped = drop_genes(cells, share=0.3, seed=0)
    gone = set(cells.gene_ids) - set(dropped.gene_ids)
    assert gone
    assert not gone & set(dropped.gene_ids)
    assert dropped.num_cells == 3
    thinned = thin_counts(cells, share=0.5, seed=0)
    assert thinned.values.min() >= 1
    assert 0 < thinned.values.sum() < np.floor(cells.values).sum()
