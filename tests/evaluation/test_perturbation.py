"""Effects of perturbations, their prediction and their scores, against scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from cytoray.evaluation.perturbation import metrics
from cytoray.evaluation.perturbation.baselines import predict_linear, predict_mean
from cytoray.evaluation.perturbation.blending import choose_blend
from cytoray.evaluation.perturbation.ceilings import agreement, crossed_halves, dynamic_range, stratum
from cytoray.evaluation.perturbation.cell_types import KnownTypes, TypeSetting, choose_for_type, predict_type
from cytoray.evaluation.perturbation.cells import make_cells
from cytoray.evaluation.perturbation.covariates import interpolation_weights, measure_points, spaced
from cytoray.evaluation.perturbation.effects import CONTROL, Effects, PerturbedCells, measure_effects
from cytoray.evaluation.perturbation.operator import Setting, choose, choose_share, fit, leave_out, left_out_means
from cytoray.evaluation.perturbation.significance import adjust, error_weights, rank_test, t_scores
from cytoray.evaluation.perturbation.views import view_of_coexpression, view_of_sets, view_of_vectors

RNG = np.random.default_rng(0)


def effects(deltas: np.ndarray, num_cells: int = 100) -> Effects:
    names = tuple(f"t{row}" for row in range(len(deltas)))
    ones = np.ones_like(deltas)
    counts = np.full(len(deltas), num_cells)
    return Effects(names, deltas, ones, 0.1 * ones, counts, num_cells, 0.1 * ones[0], equal_cells=20.0)


@pytest.fixture(scope="module")
def cells() -> PerturbedCells:
    """Two perturbations and controls in two batches; batch 1 is shifted by 1."""
    codes = np.repeat([CONTROL, 0, 1], 40)
    batches = np.tile([0, 1], 60)
    values = RNG.random((120, 6)) + batches[:, None]
    values[codes == 0, 0] += 2
    values[codes == 1, 1] += 1
    return PerturbedCells(sparse.csr_matrix(values), codes, ("a", "b"), batches)


def test_effects_are_differences_from_controls_of_the_same_batch(cells: PerturbedCells) -> None:
    some = cells.take(np.flatnonzero(~((cells.codes == 0) & (cells.groups == 1) & (np.arange(120) % 4 < 2))))
    found = measure_effects(some)
    values = some.expression.toarray()
    for code in (0, 1):
        rows = np.flatnonzero(some.codes == code)
        matched = [values[(some.codes == CONTROL) & (some.groups == some.groups[row])].mean(axis=0) for row in rows]
        np.testing.assert_allclose(found.deltas[code], (values[rows] - matched).mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found.variances[code], values[rows].var(axis=0, ddof=1), atol=1e-12)
    assert found.deltas[0, 0] == pytest.approx(2, abs=0.3), "the batch does not count"


def test_a_batch_without_controls_is_compared_with_all_of_them(cells: PerturbedCells) -> None:
    kept = np.flatnonzero(~((cells.codes == CONTROL) & (cells.groups == 1)))
    assert np.isfinite(measure_effects(cells.take(kept)).deltas).all()


def test_cells_from_two_places_have_the_effects_of_all(cells: PerturbedCells) -> None:
    is_held = cells.codes == 1
    held, rest = (cells.take(np.flatnonzero(rows)) for rows in (is_held, ~is_held))
    assert held.present.tolist() == [1]
    assert rest.without_empty().names == ("a",)
    found = measure_effects(held.joined_with(rest).without_empty())
    np.testing.assert_allclose(found.deltas, measure_effects(cells).deltas, atol=1e-12)
    alone = held.joined_with(rest.take(np.flatnonzero(rest.codes == CONTROL))).without_empty()
    np.testing.assert_allclose(measure_effects(alone).deltas, found.deltas[[1]], atol=1e-12)


def test_halves_agree_where_there_is_an_effect(cells: PerturbedCells) -> None:
    mask = np.ones((2, 6), bool)
    assert agreement(cells, mask, seed=0).min() > 0.8
    first, second = crossed_halves(cells, mask, seed=0)
    assert first.weights[0].argmax() == 0
    np.testing.assert_allclose(second.weights.sum(axis=1), 1)
    assert np.corrcoef(first.duplicate[0], first.truth[0])[0, 1] > 0.85


def test_rank_test_and_adjustment_are_those_of_scipy() -> None:
    one, two = RNG.poisson(1.0, (50, 4)), RNG.poisson([1.0, 2.0, 1.0, 0.0], (70, 4))
    expected = [
        stats.mannwhitneyu(one[:, g], two[:, g], use_continuity=False, method="asymptotic").pvalue for g in range(3)
    ]
    found = rank_test(sparse.csr_matrix(one), sparse.csr_matrix(two))
    np.testing.assert_allclose(found[:3], expected, rtol=1e-6)
    values = RNG.random(30)
    np.testing.assert_allclose(adjust(values), stats.false_discovery_control(values))


def test_t_scores_overestimate_the_variance_of_the_rest(cells: PerturbedCells) -> None:
    found = measure_effects(PerturbedCells(cells.expression, cells.codes, cells.names))
    values, own = cells.expression.toarray(), cells.codes == 0
    rest = values[~own]
    error = np.sqrt(values[own].var(axis=0, ddof=1) / 40 + rest.var(axis=0, ddof=1) / 40)
    expected = (values[own].mean(axis=0) - rest.mean(axis=0)) / error
    np.testing.assert_allclose(t_scores(found)[0], expected, rtol=0.15)
    weights = error_weights(np.array([[1.0, -3.0, 2.0]]), np.array([[True, True, False]]))
    np.testing.assert_allclose(weights, [[0, 1, 0]])


def test_metrics_are_those_of_scipy_and_loops() -> None:
    truth, predicted = RNG.normal(size=(2, 5, 40))
    mask = RNG.random((5, 40)) < 0.9
    weights = error_weights(truth, mask)
    for row in range(5):
        use = mask[row]
        expected = stats.pearsonr(predicted[row, use], truth[row, use])[0]
        assert metrics.pearson_delta(predicted, truth, mask)[row] == pytest.approx(expected)
        expected = stats.spearmanr(predicted[row, use], truth[row, use])[0]
        assert metrics.spearman_changed(predicted, truth, mask)[row] == pytest.approx(expected)
        distances = [np.abs(predicted[row, use] - other[use]).sum() for other in truth]
        rank = sum(distance < distances[row] for distance in distances)
        found = metrics.discrimination(predicted, truth, mask, rows=np.arange(5), by="l1")
        assert found[row] == pytest.approx(1 - rank / 5)
    error = metrics.weighted_error(predicted, truth, weights)

    np.testing.assert_allclose(error[0], np.average((predicted[0] - truth[0]) ** 2, weights=weights[0]))
    np.testing.assert_allclose(metrics.weighted_r2(predicted, truth, predicted, weights), 0)
    np.testing.assert_allclose(metrics.weighted_r2(truth, truth, predicted, weights), 1)
    assert metrics.direction_match(truth, truth, mask).tolist() == [1] * 5
    assert metrics.top_overlap(truth, truth, mask).tolist() == [1] * 5
    assert metrics.diversity_ratio(truth, truth) == pytest.approx(1)
    assert metrics.diversity_ratio(np.tile(truth[:1], (5, 1)), truth) == pytest.approx(0)


def test_overlap_of_significant_genes_is_of_as_many_as_are_true() -> None:
    true = np.array([0.01, 0.01, 0.5, 0.5])
    assert metrics.changed_overlap(np.array([0.01, 0.5, 0.01, 0.01]), true, np.array([1, 0, 9, 8]), level=0.05) == 0
    assert metrics.changed_overlap(np.array([0.01, 0.5, 0.01, 0.5]), true, np.array([1, 0, 9, 8]), level=0.05) == 0.5
    assert np.isnan(metrics.changed_overlap(true, np.ones(4), true, level=0.05))


def test_strata_and_dynamic_range() -> None:
    assert stratum(0.2, 0.9, 0.9) is None
    assert stratum(0.9, 0.8, 0.9) == "saturated"
    assert stratum(0.9, 0.3, 0.9) == "resistant"
    assert dynamic_range(0.2, 0.6, 1.0) == pytest.approx(0.5)


def test_leaving_out_in_closed_form_is_leaving_out() -> None:
    known = effects(RNG.normal(size=(7, 5)))
    vectors = RNG.normal(size=(7, 3))
    kernel = vectors @ vectors.T
    found = leave_out(kernel, known, 0.3)
    for row in range(7):
        rest = np.delete(np.arange(7), row)
        some = known.take(rest)
        some = type(some)(**{**some.__dict__, "equal_cells": known.equal_cells})
        fitted = fit(Setting(("v",), 0.3, 1.0), {"v": kernel[np.ix_(rest, rest)]}, some)
        predicted, confidence = fitted.predict({"v": kernel[[row]][:, rest]}, 1)
        np.testing.assert_allclose(found.means[row] + found.deviations[row], predicted[0], atol=1e-10)
        np.testing.assert_allclose(found.confidence[row], confidence[0], atol=1e-10)


def test_an_informative_view_is_chosen_and_noise_falls_back_to_the_mean() -> None:
    groups = np.repeat(np.arange(4), 4)
    deltas = RNG.normal(size=(4, 30))[groups] + 0.3 * RNG.normal(size=(16, 30))
    known = effects(deltas)
    good = (groups[:, None] == groups).astype(float)
    vectors = RNG.normal(size=(16, 40))
    bad = vectors @ vectors.T / 40
    weights = np.full(deltas.shape, 1 / 30)
    choice = choose({"good": good, "bad": bad}, known, weights)
    assert choice.setting.views == ("good",)
    assert choice.errors["chosen"] < 0.4 * choice.errors["mean"]
    assert choice.confidence.min() > 0.5
    noise = choose({"bad": bad}, effects(RNG.normal(size=(16, 30))), weights)
    assert noise.errors["chosen"] <= noise.errors["mean"]
    assert choose({}, known, weights).setting == Setting()
    assert choose_share(choice.held_out, deltas, known, weights) == 1.0
    assert choose_share(choice.held_out, RNG.normal(size=deltas.shape), known, weights) == 0.0


def test_another_model_is_blended_if_it_helps_on_targets_that_it_has_not_seen() -> None:
    deltas = RNG.normal(size=(12, 40))
    known, weights = effects(deltas), np.full(deltas.shape, 1 / 40)
    held_out = left_out_means(known)
    level = 3 + RNG.normal(size=40)  # of the cells that the other model was trained on
    good = np.where(np.arange(12)[:, None] < 9, level + deltas + 0.3 * RNG.normal(size=deltas.shape), np.nan)
    good[:, -1] = np.nan  # a gene that it does not predict
    choice = choose_blend(held_out, good, known, weights)
    assert choice.blend is not None
    assert choice.blend.share >= 0.75
    assert choice.blend.gain > 0.7
    assert "on 9 targets left out" in choice.why
    np.testing.assert_array_equal(choice.held_out[9:], held_out[9:], "not judged")
    np.testing.assert_array_equal(choice.held_out[:, -1], held_out[:, -1])
    new = RNG.normal(size=40)
    mean = deltas.mean(axis=0)
    found = choice.blend.apply(mean[None], mean, (level + new)[None])[0]
    assert np.corrcoef((found - mean)[:-1], new[:-1])[0, 1] > 0.8
    assert found[-1] == mean[-1]
    bad = choose_blend(held_out, RNG.normal(size=deltas.shape), known, weights)
    assert bad.blend is None
    assert "not used: weighted error" in bad.why
    np.testing.assert_array_equal(bad.held_out, held_out)
    few = choose_blend(held_out, np.where(np.arange(12)[:, None] < 3, good, np.nan), known, weights)
    assert few.blend is None
    assert "3 known targets are new to it, 4 are needed" in few.why


def test_effects_are_interpolated_between_the_doses_and_times_that_were_measured() -> None:
    doses, no = np.array([[1.0], [2.0], [4.0]]), np.array([np.nan])
    curve = RNG.normal(size=(3, 5))
    for dose in (1, 1.5, 3, 4, 9):
        expected = [np.interp(dose, doses[:, 0], gene) for gene in curve.T]
        np.testing.assert_allclose(interpolation_weights(doses, np.array([dose]), no) @ curve, expected)
    np.testing.assert_allclose(interpolation_weights(doses, np.array([0.5]), np.zeros(1)), [0.5, 0, 0])
    np.testing.assert_allclose(interpolation_weights(doses, np.zeros(1), np.zeros(1)), [0, 0, 0], err_msg="no effect")
    grid = np.array([[1.0, 6.0], [2.0, 6.0], [1.0, 24.0]])  # a dose was measured at one time alone
    found = interpolation_weights(grid, np.array([1.5, 15.0]), np.array([np.nan, np.nan]))
    np.testing.assert_allclose(found, [0.25, 0.25, 0.5])
    wide = np.array([0.1, 1.0, 10.0])
    steps = np.diff(spaced(wide, wide))
    assert steps[1] == pytest.approx(steps[0], rel=0.4), "steps of a factor of ten are about equal"
    np.testing.assert_array_equal(spaced(np.array([6.0, 24.0]), wide), wide)


def test_points_are_the_effects_of_their_cells(cells: PerturbedCells) -> None:
    values = np.where(cells.codes == CONTROL, 0.0, 1.0 + (np.arange(120) // 2) % 2)[:, None]
    points = measure_points(cells, values)
    assert points.owners.tolist() == [0, 0, 1, 1]
    assert points.ranges.tolist() == [[0, 2]]
    for dose in (1.0, 2.0):
        kept = np.flatnonzero((values[:, 0] == dose) | (cells.codes == CONTROL))
        found = points.at(np.array([dose]), names=cells.names)
        np.testing.assert_allclose(found.deltas, measure_effects(cells.take(kept)).deltas, atol=1e-12)
    assert not points.at(np.zeros(1), names=cells.names).deltas.any()
    half = points.at(np.array([1.5]), names=cells.names)
    np.testing.assert_allclose(half.deltas[1], points.effects.deltas[2:].mean(axis=0))
    alone = points.take(np.array([1])).at(np.array([1.5]), names=("b",))
    np.testing.assert_allclose(alone.deltas[0], half.deltas[1])


def test_views_are_cosines_and_name_what_is_shared() -> None:
    view = view_of_sets("s", {"small": frozenset({"A", "B"}), "large": frozenset({"A", "B", "C", "D"})})
    assert view.similarity(["a"], ["B", "C", "X"])[0] == pytest.approx([1, (0.25 / np.sqrt(0.75 * 0.25)), 0])
    assert view.shared("A", "B", num=2) == ["small", "large"]
    small = view.restricted(["C"])
    np.testing.assert_allclose(small.similarity(["A", "B"], ["C"]), view.similarity(["A", "B"], ["C"]))
    assert small.feature_names == ("large",)
    vectors = RNG.normal(size=(6, 3))
    centred = vectors - vectors.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    names = list("uvwxyz")
    view = view_of_vectors("e", names, vectors)
    np.testing.assert_allclose(view.restricted(["u", "v"]).similarity(names, ["v", "u"]), view.similarity(names, "vu"))
    assert view.restricted(["u", "v"]).features.shape == (6, 2)
    found = view.similarity(names, names)
    np.testing.assert_allclose(found, centred @ centred.T, atol=1e-12)
    shared = RNG.normal(size=(200, 1))
    expression = np.hstack([shared + 0.1 * RNG.normal(size=(200, 3)), RNG.normal(size=(200, 3))]) + 5
    found = view_of_coexpression("c", names, sparse.csr_matrix(expression)).similarity(["u"], ["v", "z"])[0]
    assert found[0] > 0.95
    assert abs(found[1]) < 0.5


def test_simple_predictions() -> None:
    known = effects(RNG.normal(size=(5, 8)))
    np.testing.assert_allclose(predict_mean(known, 2), np.tile(known.deltas.mean(axis=0), (2, 1)))
    genes = [f"t{row}" for row in range(8)]
    found = predict_linear(known, genes, ["t6", "unknown"])
    np.testing.assert_allclose(found[1], np.vstack([known.deltas, np.zeros(8)]).mean(axis=0))
    assert np.isfinite(found).all()


def test_made_cells_have_the_mean_that_is_predicted() -> None:
    rates = np.array([0.2, 1.0, 4.0, 0.0])
    control = sparse.csr_matrix(np.log1p(RNG.poisson(rates, (500, 4)) * 3.0))
    means = np.asarray(control.mean(axis=0)).ravel()
    delta = np.array([0.5, -0.5, 1.0, 0.3])
    made = make_cells(control, delta, num_cells=4000, seed=1)
    np.testing.assert_allclose(np.asarray(made.mean(axis=0)).ravel(), np.maximum(means + delta, 0), atol=0.06)
    assert 0 < (made[:, 1].toarray() == 0).mean() < 1, "genes are still missed in cells"


def test_similar_cell_types_count_more() -> None:
    kinds = np.repeat([0, 1], 4)
    controls = RNG.normal(size=(2, 50))[kinds] + 0.1 * RNG.normal(size=(8, 50))
    deltas = RNG.normal(size=(2, 50))[kinds] + 0.1 * RNG.normal(size=(8, 50))
    weights = np.full((8, 50), 1 / 50)
    known = KnownTypes(tuple(f"k{row}" for row in range(8)), deltas, controls, np.ones(8), weights)
    setting, errors = choose_for_type(known.without(0))
    assert setting.temperature > 0
    predicted = predict_type(known.without(0), controls[0], setting)
    assert np.corrcoef(predicted, deltas[0])[0, 1] > 0.9
    assert min(errors.values()) < 0.2 * errors[str(TypeSetting())]
    assert choose_for_type(known.without(0).without(0).without(0).without(0).without(0).without(0))[0] == TypeSetting()
