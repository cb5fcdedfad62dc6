"""Calibration, prediction sets, unseen types and adaptation to a query, against independent figures."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from cytoray.evaluation.adaptation import adapt_frequencies, nearest_neighbours, smooth_over_neighbours
from cytoray.evaluation.calibration import (
    brier_score,
    fit_temperature,
    measure_reliability,
    negative_log_likelihood,
    softmax,
)
from cytoray.evaluation.conformal import area_under_roc, fit_prediction_sets, fit_strangeness


def draw_answers(num_cells: int, *, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (C, 4) of which softmax(logits / sharpness) is the truth's distribution, and true labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (num_cells, 4))
    truth = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    return sharpness * logits, truth


def test_scores_are_those_of_scikit_learn():
    logits, truth = draw_answers(500)
    probabilities = softmax(logits)
    assert negative_log_likelihood(probabilities, truth) == pytest.approx(log_loss(truth, probabilities))
    expected = brier_score_loss(truth, probabilities, labels=range(4), scale_by_half=False)
    assert brier_score(probabilities, truth) == pytest.approx(expected)


def test_a_temperature_undoes_overconfidence():
    logits, truth = draw_answers(4000, sharpness=3.0)
    assert measure_reliability(softmax(logits), truth).error > 0.1
    temperature = fit_temperature(logits, truth)
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert measure_reliability(softmax(logits / temperature), truth).error < 0.03
    assert fit_temperature(logits[:0], truth[:0]) == 1.0


def test_reliability_has_bins_of_equal_mass():
    logits, truth = draw_answers(100)
    assert set(measure_reliability(softmax(logits), truth, num_bins=15).num_cells) == {6, 7}
    assert len(measure_reliability(softmax(logits[:3]), truth[:3]).num_cells) == 3


def test_prediction_sets_cover_what_they_promise_in_each_label():
    logits, truth = draw_answers(8000)
    probabilities = softmax(logits)
    sets = fit_prediction_sets(probabilities[:4000], truth[:4000], level=0.9)
    inside = sets.contain(probabilities[4000:])
    new = truth[4000:]
    for label in range(4):
        assert inside[new == label, label].mean() == pytest.approx(0.9, abs=0.025)
    assert inside.any(axis=1).all()


def test_few_cells_of_a_label_give_wide_sets():
    probabilities, truth = softmax(draw_answers(5)[0]), draw_answers(5)[1]
    assert fit_prediction_sets(probabilities, truth, level=0.9).contain(probabilities).all()


def test_distances_unlike_those_of_the_label_have_small_p_values():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    known = fit_strangeness(rng.gamma(4, 1 + labels), labels, num_labels=2)
    same = known.p_values(rng.gamma(4, 1 + labels), labels)
    assert np.quantile(same, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.05)
    far = known.p_values(np.full(2, 100.0), np.array([0, 1]))
    assert (far < 0.005).all()


def test_a_label_without_held_out_cells_is_compared_with_all():
    known = fit_strangeness(np.arange(20.0), np.zeros(20, np.int64), num_labels=2)
    assert known.p_values(np.array([-1.0, 99.0]), np.array([1, 1])) == pytest.approx([1.0, 1 / 21])


def test_the_area_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.3
    assert area_under_roc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_frequencies_of_a_shifted_query_are_found():
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 3000, p=[0.8, 0.1, 0.1])
    points = truth[:, None] + rng.normal(0, 0.7, (3000, 1))
    even = softmax(-((points - np.arange(3)) ** 2) / (2 * 0.7**2))
    adapted = adapt_frequencies(even, np.full(3, 1 / 3))
    assert adapted.mean(axis=0) == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert (adapted.argmax(axis=1) == truth).mean() > (even.argmax(axis=1) == truth).mean()
    assert adapt_frequencies(even[:100], np.full(3, 1 / 3)) is not adapted
    assert np.array_equal(adapt_frequencies(even[:100], np.full(3, 1 / 3)), even[:100])


def test_neighbours_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    points, others = rng.normal(size=(1100, 8)).astype(np.float32), rng.normal(size=(500, 8)).astype(np.float32)
    found, distances = nearest_neighbours(points, others, num=10)
    expected_distances, expected = NearestNeighbors(n_neighbors=10).fit(others).kneighbors(points)
    assert np.array_equal(found, expected)
    assert distances == pytest.approx(expected_distances, abs=1e-4)
    own, _ = nearest_neighbours(points, num=10)
    assert np.array_equal(own, NearestNeighbors(n_neighbors=11).fit(points).kneighbors(points)[1][:, 1:])
    assert nearest_neighbours(points[:3], num=10)[0].shape == (3, 2)


def test_smoothing_is_an_average_with_the_neighbours():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    smoothed = smooth_over_neighbours(probabilities, np.array([[1, 2], [0, 2], [0, 1]]))
    assert smoothed == pytest.approx(np.full((3, 2), [1 / 3, 2 / 3]))
    assert np.array_equal(smooth_over_neighbours(probabilities, np.zeros((3, 1), np.int64), times=0), probabilities)
