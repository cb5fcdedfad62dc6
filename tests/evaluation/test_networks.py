"""Arithmetic of networks beside scipy, scikit-learn, statsmodels-like formulas and planted edges."""

from __future__ import annotations

import numpy as np
import pytest
from planted_network import EDGES, FACTORS, GENES, TARGETS, build
from scipy import sparse, stats
from sklearn.linear_model import LinearRegression
from sklearn.metrics import average_precision_score, roc_auc_score

from cytoray.evaluation.networks import cells as networks_cells
from cytoray.evaluation.networks.activity import activities
from cytoray.evaluation.networks.cells import NetworkCells, components, equal_halves, pools_of, prepare_cells
from cytoray.evaluation.networks.correlation import correlate, fisher_difference
from cytoray.evaluation.networks.programs import adjust, enrich, find_programs, without_components
from cytoray.evaluation.networks.ranking import (
    aggregate,
    equal_weights,
    learn_weights,
    normal_scores,
    percentiles,
    reliabilities,
    score_evidence,
)
from cytoray.evaluation.networks.scores import (
    KnownEdges,
    early_precision_ratio,
    factor_aurocs,
    overlap,
    precision_ratio,
    shuffled,
    sign_accuracy,
)
from cytoray.evaluation.networks.similarity import set_similarity
from cytoray.evaluation.networks.trees import Factors, TreeOptions

TFS, ALL = np.arange(len(FACTORS)), np.arange(len(GENES))


@pytest.fixture(scope="module")
def cells() -> NetworkCells:
    return prepare_cells(build().X, log_normalised=False)


@pytest.fixture(scope="module")
def known() -> KnownEdges:
    edges = np.array([[gene in EDGES[tf] for gene in GENES] for tf in FACTORS])
    signs = np.where(edges, np.array([-1 if gene in {each[-1] for each in EDGES.values()} else 1 for gene in GENES]), 0)
    return KnownEdges(edges, signs.astype(np.int8), np.array(FACTORS)[:, None] != np.array(GENES)[None])


def residuals_by_regression(cells: NetworkCells) -> np.ndarray:
    dense = cells.expression.toarray().astype(np.float64)
    depth = cells.depth[:, None]
    return dense - LinearRegression().fit(depth, dense).predict(depth)


def test_correlation_is_that_of_the_residuals_of_a_regression_on_depth(cells: NetworkCells) -> None:
    expected = np.corrcoef(residuals_by_regression(cells).T)[: len(FACTORS)]
    blocks = [cells.select(block) for block in np.array_split(ALL, 7)]
    found = np.concatenate([correlate(cells.select(TFS), block) for block in blocks], axis=1)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    standardised = stats.zscore(residuals_by_regression(cells))
    np.testing.assert_allclose(cells.residuals(ALL), standardised, atol=2e-3)


def test_depth_makes_no_edges() -> None:
    rng = np.random.default_rng(0)
    depth = rng.lognormal(0, 1, 2_000)
    counts = sparse.csr_matrix(rng.poisson(depth[:, None] * np.full(30, 2.0)).astype(np.float32))
    corrected = prepare_cells(counts, log_normalised=False)
    raw = NetworkCells(corrected.expression, np.zeros(2_000))
    off = ~np.eye(30, dtype=bool)
    sizes = [np.abs(correlate(each, each)[off]).mean() for each in (corrected, raw)]
    assert sizes[0] < sizes[1] / 1.5


def test_pools_average_near_cells(cells: NetworkCells) -> None:
    pools = pools_of(cells, size=5, num=40, seed=0)
    assert pools.shape == (40, cells.num_cells)
    np.testing.assert_allclose(pools.sum(axis=1), 1, atol=1e-6)
    assert (pools != pools_of(cells, size=5, num=40, seed=0)).nnz == 0
    alone = pools_of(cells, size=1, num=1_000, seed=0)
    assert (alone != sparse.eye(cells.num_cells)).nnz == 0
    np.testing.assert_allclose(cells.pool(pools), pools @ cells.residuals(ALL), atol=1e-4)


def test_principal_axes_of_a_sample_of_the_cells_serve_all(
    cells: NetworkCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = components(cells, seed=0)
    monkeypatch.setattr(networks_cells, "MOST_CELLS_LOOKED_AT", 150)
    monkeypatch.setattr(networks_cells, "_CELLS_AT_A_TIME", 64)
    sampled = components(cells, seed=0)
    assert sampled.shape == whole.shape
    plane = np.linalg.lstsq(sampled[:, :6].astype(float), whole[:, :6].astype(float), rcond=None)[0]
    left = whole[:, :6] - sampled[:, :6] @ plane
    assert np.square(left).sum() < 0.1 * np.square(whole[:, :6]).sum(), "six factors vary: the same six directions"


def test_trees_find_the_planted_factor_and_do_not_depend_on_the_block(cells: NetworkCells) -> None:
    values = cells.residuals(ALL)
    options = TreeOptions(num_trees=40)
    factors = Factors(np.ascontiguousarray(values[:, TFS]), FACTORS, options)
    whole = factors.importances(values, GENES)
    hits = [whole[:, GENES.index(target)].argmax() == row for row, tf in enumerate(FACTORS) for target in EDGES[tf]]
    assert np.mean(hits) > 0.85
    assert (whole[TFS, TFS] == 0).all(), "a factor does not explain itself"
    noise = np.random.default_rng(0).normal(size=(len(values), 1)).astype(np.float32)
    unexplained = factors.importances(noise, ["noise"]).sum()
    assert np.median(whole[:, len(FACTORS) :].sum(axis=0)) > unexplained, "gains compare between targets"
    some = [3, 20, 7]
    part = factors.importances(values[:, some], [GENES[k] for k in some])
    np.testing.assert_array_equal(part, whole[:, some])


def test_percentiles_are_ranks_among_the_targets_of_a_factor() -> None:
    rng = np.random.default_rng(0)
    values, valid = rng.normal(size=(4, 6)).astype(np.float32), np.ones((4, 6), bool)
    valid[0, 1] = False
    found = percentiles(values, valid)
    np.testing.assert_allclose(found[2], (stats.rankdata(values[2]) - 0.5) / 6, atol=1e-6)
    np.testing.assert_allclose(found[0, 2:], (stats.rankdata(values[0][valid[0]])[1:] - 0.5) / 5, atol=1e-6)
    assert found[0, 1] == 0
    ties = percentiles(np.zeros((4, 6), np.float32), np.ones((4, 6), bool))
    np.testing.assert_allclose(ties, 0.5)


def test_weights_are_learned_from_known_edges_of_other_factors(known: KnownEdges) -> None:
    rng = np.random.default_rng(0)
    good = (known.edges + rng.normal(0, 0.7, known.edges.shape)).astype(np.float32)
    ranked = {"noise": percentiles(rng.normal(size=good.shape).astype(np.float32), known.valid),
              "good": percentiles(good, known.valid)}  # fmt: skip
    found = learn_weights(ranked, known.edges, known.valid)
    assert found["good"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    nothing = learn_weights(ranked, np.zeros_like(known.edges), known.valid)
    assert nothing == equal_weights(ranked)
    np.testing.assert_allclose(aggregate(ranked, {"good": 2.0}), stats.norm.cdf(ranked["good"]), atol=1e-6)


def test_reliability_is_the_stepped_up_correlation_of_two_halves(known: KnownEdges) -> None:
    rng = np.random.default_rng(0)
    halves = rng.normal(size=(2, *known.edges.shape)).astype(np.float32)
    halves[:, :3] += 3 * rng.normal(size=halves[0, :3].shape).astype(np.float32)  # three factors have a signal
    halves[:, 5] = 1
    found = reliabilities(halves, known.valid)
    for row in range(3):
        own = [stats.norm.ppf(stats.rankdata(half[row, known.valid[row]]) / 59 - 0.5 / 59) for half in halves]
        r = np.corrcoef(own)[0, 1]
        assert found[row] == pytest.approx(2 * r / (1 + r), rel=1e-4)
    assert (found[:3] > 0.85).all()
    assert (found[3:5] < 0.5).all()
    assert found[5] == 0.01, "a constant orders nothing"
    scores = score_evidence({"cells": halves[0], "sets": halves[1]}, {"cells": found}, known.valid)
    np.testing.assert_allclose(scores["cells"][0], found[0] * normal_scores(halves[0], known.valid)[0], rtol=1e-5)
    np.testing.assert_allclose(scores["sets"][0], found[0] * normal_scores(halves[1], known.valid)[0], rtol=1e-5)
    assert np.abs(scores["sets"][5]).max() < 0.05, "gene sets alone make no strong edges"


def test_evidence_that_is_noise_does_not_blur_what_halves_of_the_cells_agree_on() -> None:
    rng = np.random.default_rng(0)
    valid = np.ones((40, 200), bool)
    strength = np.repeat([2.0, 0.0], [10, 30])[:, None]  # three quarters of the factors are noise
    true = strength * rng.normal(size=valid.shape)

    def infer(weigh: bool) -> np.ndarray:
        good = np.stack([true + rng.normal(size=valid.shape) for _ in range(2)]).astype(np.float32)
        noise = rng.normal(size=good.shape).astype(np.float32)
        own = {"good": reliabilities(good, valid), "noise": reliabilities(noise, valid)}
        ones = dict.fromkeys(own, np.ones(len(valid)))
        scores = score_evidence({"good": good.mean(0), "noise": noise.mean(0)}, own if weigh else ones, valid)
        return aggregate(scores, equal_weights(scores))

    weighed, plain = (overlap(infer(way), infer(way), valid, num=300) for way in (True, False))
    assert plain < 0.2
    assert weighed > 0.5


def test_scores_are_those_of_scikit_learn(known: KnownEdges) -> None:
    rng = np.random.default_rng(1)
    weights = (known.edges + rng.normal(0, 1, known.edges.shape)).astype(np.float32)
    aurocs = [roc_auc_score(known.edges[row, known.valid[row]], weights[row, known.valid[row]]) for row in TFS]
    np.testing.assert_allclose(factor_aurocs(weights, known), aurocs)
    truth, values = known.edges[known.valid], weights[known.valid]
    assert precision_ratio(weights, known) == pytest.approx(average_precision_score(truth, values) / truth.mean())
    top = np.argsort(-values)[: truth.sum()]
    assert early_precision_ratio(weights, known) == pytest.approx(truth[top].mean() / truth.mean())
    assert early_precision_ratio(np.zeros_like(weights), known) == pytest.approx(1), "ties count by their share"


def test_shuffled_edges_keep_the_degrees(known: KnownEdges) -> None:
    found = shuffled(known, seed=0)
    np.testing.assert_array_equal(found.edges.sum(axis=0), known.edges.sum(axis=0))
    np.testing.assert_array_equal(found.edges.sum(axis=1), known.edges.sum(axis=1))
    assert (found.edges & ~known.edges).any()
    assert not (found.edges & ~known.valid).any()


def test_signs_and_overlap(known: KnownEdges, cells: NetworkCells) -> None:
    found = correlate(cells.select(TFS), cells)
    assert sign_accuracy(found, known) == 1
    assert sign_accuracy(-found, known) == 0
    assert overlap(found, found, known.valid, num=20) == 1
    assert overlap(found, -found, known.valid, num=20) == 0


def test_activity_is_the_t_value_of_a_regression() -> None:
    rng = np.random.default_rng(0)
    expression = rng.poisson(1.0, (5, 40)).astype(np.float64)
    weights = rng.normal(size=(40, 3)) * (rng.random((40, 3)) < 0.3)
    found = activities(sparse.csr_matrix(expression), weights)
    for cell in range(5):
        for tf in range(3):
            fit = stats.linregress(weights[:, tf], expression[cell])
            assert found[cell, tf] == pytest.approx(fit.slope / fit.stderr, rel=1e-4)


def test_programs_and_their_gene_sets(cells: NetworkCells) -> None:
    values = cells.residuals(ALL)
    numbers = find_programs(np.corrcoef(values.T), seed=0)
    groups = [set(numbers[[GENES.index(target) for target in EDGES[tf][:8]]]) for tf in FACTORS]
    assert all(len(group) == 1 for group in groups), "targets of a factor are one program"
    sets = {"planted": frozenset(EDGES["IRF1"]), "other": frozenset(TARGETS[10:30])}
    found = enrich(EDGES["IRF1"][:8], sets, frozenset(GENES))
    assert [each.name for each in found] == ["planted"]
    expected = stats.fisher_exact([[8, 1], [0, 51]], alternative="greater").pvalue
    assert found[0].p_value == pytest.approx(expected)
    p_values = np.array([0.04, 0.001, 0.2, 0.03])
    np.testing.assert_allclose(adjust(p_values), stats.false_discovery_control(p_values))


def test_vectors_without_their_first_components() -> None:
    rng = np.random.default_rng(0)
    common = np.outer(rng.normal(size=50), np.ones(8)) * 10
    found = without_components(common + rng.normal(size=(50, 8)), num=1)
    assert np.abs(found).max() < 5
    assert np.abs(np.corrcoef(found.sum(axis=1), common[:, 0])[0, 1]) < 0.3


def test_rare_shared_sets_count_more() -> None:
    sets = {"rare": frozenset({"A", "B"}), "wide": frozenset({"A", "C", "D", "E"})}
    found = set_similarity(["A"], ["B", "C", "F"], sets)[0]
    assert found[0] > found[1] > 0
    assert found[2] == 0


def test_halves_and_differences() -> None:
    first, second = equal_halves(11, groups=["a", "b"] * 5 + ["a"], seed=0)
    np.testing.assert_array_equal(np.sort(np.concatenate([first, second])), np.arange(11))
    z = fisher_difference(np.float32([0.5, 0.2]), np.float32([0.1, 0.2]), num_first=104, num_second=104)
    assert z[0] == pytest.approx((np.arctanh(0.5) - np.arctanh(0.1)) / np.sqrt(2 / 100), rel=1e-4)
    assert z[1] == 0
