from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from cytoray.evaluation import voters as voters_module
from cytoray.evaluation.calibration import measure_reliability
from cytoray.evaluation.classification import macro_f1, macro_f1_of_draws
from cytoray.evaluation.splits import stratified_folds
from cytoray.evaluation.stacking import Blend, choose_blend, fit_weights
from cytoray.evaluation.voters import RECIPES, Expression, Round, disturb, fit_voters

NUM_GENES = 300


def draw_cells(
    num_cells: int, *, seed: int, shares: tuple[float, ...] = (0.5, 0.3, 0.2)
) -> tuple[Expression, np.ndarray]:
    """Counts of cells of three types, which differ in thirty genes, and their codes."""
    rates = np.random.default_rng(99).gamma(0.5, 1.0, NUM_GENES) * np.ones((3, 1))
    for kind in range(3):
        rates[kind, 10 * kind : 10 * kind + 10] *= 4
    rng = np.random.default_rng(seed)
    codes = rng.choice(3, num_cells, p=[0.5, 0.3, 0.2])
    depth = rng.uniform(0.4, 1.2, (num_cells, 1))
    return Expression(sparse.csr_matrix(rng.poisson(rates[codes] * depth).astype(np.float32))), codes


def rounds_of(codes: np.ndarray, num_folds: int, seed: int, *, is_disturbed: bool = False) -> Round:
    folds = stratified_folds(codes.astype(str).tolist(), num_folds=num_folds, seed=seed)
    return Round(tuple(folds), is_disturbed)


@pytest.fixture(scope="module")
def fitted():
    """Voters fitted on 240 cells, their held-out answers, and the cells."""
    cells, codes = draw_cells(240, seed=1)
    rounds = [rounds_of(codes, 4, seed) for seed in range(2)]
    return *fit_voters(cells, codes, num_labels=3, rounds=rounds), cells, codes


def test_expression_is_log1p_of_counts_per_10_000(fitted):
    cells = fitted[2]
    counts = cells.values.toarray()
    expected = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    assert cells.expression.toarray() == pytest.approx(expected, rel=1e-5)
    same = Expression(cells.expression, log_normalised=True)
    assert (same.expression != cells.expression).nnz == 0


def test_ranks_are_those_of_scipy_among_the_values_above_zero(fitted):
    cells = fitted[2]
    for row in (0, 7, 239):
        values = cells.values[row].toarray().ravel()
        expected = np.zeros(NUM_GENES)
        expected[values > 0] = stats.rankdata(values[values > 0]) / np.count_nonzero(values)
        assert cells.ranks[row].toarray().ravel() == pytest.approx(expected, rel=1e-6)
    assert Expression(sparse.csr_matrix((2, 5), dtype=np.float32)).ranks.nnz == 0


def test_ranks_and_components_do_not_depend_on_the_company(fitted):
    voters, _, cells, _ = fitted
    for voter in voters.values():
        alone = voter.log_probabilities(cells.take(np.array([5])))
        assert alone[0] == pytest.approx(voter.log_probabilities(cells)[5], abs=1e-3)


def test_a_voter_gives_the_probabilities_of_scikit_learn(fitted):
    voters, _, cells, codes = fitted
    voter = voters["genes"]
    features = voter.features.transform(cells)
    assert features.min() >= 0
    assert features.max() == pytest.approx(1.0)
    oracle = LogisticRegression(C=voter.strength, max_iter=300, tol=1e-3).fit(features, codes)
    assert np.exp(voter.log_probabilities(cells)) == pytest.approx(oracle.predict_proba(features), abs=2e-4)


def test_two_labels_and_one_label(fitted):
    cells, codes = fitted[2], (fitted[3] > 0).astype(np.int64)
    rounds = [rounds_of(codes, 2, 0)]
    voters, _ = fit_voters(cells, codes, num_labels=2, rounds=rounds)
    features = voters["genes"].features.transform(cells)
    oracle = LogisticRegression(C=voters["genes"].strength, max_iter=300, tol=1e-3).fit(features, codes)
    found = np.exp(voters["genes"].log_probabilities(cells))
    assert found == pytest.approx(oracle.predict_proba(features), abs=2e-4)
    voters, held_out = fit_voters(cells, 0 * codes, num_labels=1, rounds=rounds)
    assert np.allclose(voters["radial"].log_probabilities(cells), 0)
    assert all(np.allclose(answers, 0) for answers in held_out.values())


def test_held_out_answers_come_from_the_other_folds_alone(fitted):
    """Cells without any signal: an answer that had seen its own label would be better than chance."""
    rng = np.random.default_rng(0)
    noise = Expression(sparse.csr_matrix(rng.poisson(1.0, (120, NUM_GENES)).astype(np.float32)))
    codes = rng.integers(0, 2, 120)
    rounds = [rounds_of(codes, 5, seed) for seed in range(2)]
    voters, held_out = fit_voters(noise, codes, num_labels=2, rounds=rounds)
    for name, answers in held_out.items():
        right = (answers.argmax(axis=2) == codes).mean()
        assert right < 0.65, name
        assert (voters[name].log_probabilities(noise).argmax(axis=1) == codes).mean() > right, name


def test_voters_and_blend_label_new_cells(fitted):
    voters, held_out, _, codes = fitted
    assert voters.keys() == RECIPES.keys()
    new, truth = draw_cells(600, seed=2)
    answers = {name: voter.log_probabilities(new) for name, voter in voters.items()}
    for name, answer in answers.items():
        assert np.exp(answer).sum(axis=1) == pytest.approx(np.ones(600))
        assert (answer.argmax(axis=1) == truth).mean() > 0.8, name
    choice = choose_blend(held_out, codes, baseline="genes")
    product = choice.product.combine(answers)
    assert np.exp(product).sum(axis=1) == pytest.approx(np.ones(600))
    assert measure_reliability(np.exp(product), truth).error < 0.08
    accuracy = {name: (answer.argmax(axis=1) == truth).mean() for name, answer in answers.items()}
    assert (product.argmax(axis=1) == truth).mean() >= max(accuracy.values()) - 0.02


def test_equal_seeds_give_equal_voters(fitted):
    voters, held_out, cells, codes = fitted
    rounds = [rounds_of(codes, 4, seed) for seed in range(2)]
    again, answers = fit_voters(cells, codes, num_labels=3, rounds=rounds)
    for name in RECIPES:
        assert np.array_equal(again[name].weights, voters[name].weights)
        assert np.array_equal(answers[name], held_out[name])


def test_macro_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, 90), rng.integers(0, 4, 90)
    labels = np.unique(truth)
    expected = f1_score(truth, predicted, average="macro", labels=labels)
    assert macro_f1(truth, predicted, 4) == pytest.approx(expected)


def test_macro_f1_of_many_draws_is_that_of_each():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, 30), rng.integers(0, 4, 30)
    draws = [np.flatnonzero(truth > 0), *rng.integers(0, 30, (6, 30))]  # one label is missing from the first
    times = np.stack([np.bincount(rows, minlength=30) for rows in draws]).astype(float)
    expected = [macro_f1(truth[rows], predicted[rows], 4) for rows in draws]
    assert macro_f1_of_draws(times, truth, predicted, 4) == pytest.approx(expected)


def make_answers(codes: np.ndarray, sharpness: float, seed: int, *, num_labels: int = 3) -> np.ndarray:
    """Held-out log-probabilities (2, C, K) that are right the more often the sharper."""
    noise = np.random.default_rng(seed).normal(0, 1, (2, len(codes), num_labels))
    logits = noise + sharpness * np.eye(num_labels)[codes]
    return logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))


def test_weights_go_to_the_voter_that_knows():
    codes = np.random.default_rng(0).integers(0, 3, 400)
    weights = fit_weights({"knows": make_answers(codes, 3, 1), "guesses": make_answers(codes, 0, 2)}, codes)
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["knows"] > 0.9


def test_the_baseline_stays_unless_another_is_clearly_better():
    codes = np.random.default_rng(0).integers(0, 3, 300)
    base = make_answers(codes, 2, 1)
    same = choose_blend({"genes": base, "other": base + 1e-3 * make_answers(codes, 0, 9)}, codes, baseline="genes")
    assert same.chosen == "genes"
    better = choose_blend({"genes": base, "other": make_answers(codes, 4, 2)}, codes, baseline="genes")
    assert better.chosen != "genes"
    assert better.scores[better.chosen] > better.scores["genes"] + 0.05
    worse = choose_blend({"genes": base, "other": make_answers(codes, 0.2, 2)}, codes, baseline="genes")
    assert worse.product.weights["genes"] > 0.5
    assert worse.baseline.weights == {"genes": 1.0}


def test_a_rare_label_is_found_after_adjustment():
    """Likelihood alone never gives the rare label; macro-F1 chooses an adjustment under which it is found."""
    rng = np.random.default_rng(0)
    codes = (rng.random(600) < 0.05).astype(np.int64)
    logits = np.stack([np.full(600, 3.0), 1.5 * codes + rng.normal(0, 0.3, 600)], axis=1)[None].repeat(2, axis=0)
    answers = {"genes": logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))}
    assert (answers["genes"][0].argmax(axis=1) == 0).all()
    choice = choose_blend(answers, codes, baseline="genes")
    found = choice.product.combine({"genes": answers["genes"][0]}).argmax(axis=1)
    assert macro_f1(codes, found, 2) > 0.85


def test_a_blend_of_one_voter_is_that_voter():
    answers = make_answers(np.zeros(5, np.int64), 1, 0)[0]
    blend = Blend({"genes": 1.0}, np.zeros(3))
    assert blend.combine({"genes": answers, "other": answers * 9}) == pytest.approx(answers)


def test_views_are_computed_once(monkeypatch, fitted):
    calls = []
    real = voters_module.fit_components
    monkeypatch.setattr(
        voters_module,
        "fit_components",
        lambda *args, **options: (calls.append(options["view"]), real(*args, **options))[1],
    )
    cells, codes = fitted[2], fitted[3]
    fit_voters(cells, codes, num_labels=3, rounds=[rounds_of(codes, 2, 0)])
    assert calls == ["expression", "ranks"] * 3, "two folds and the whole"


def test_disturbed_cells_are_shallower_and_lack_genes():
    cells, _ = draw_cells(300, seed=3)
    changed = disturb(cells, seed=0)
    ratio = np.asarray(changed.values.sum(axis=1)).ravel() / np.asarray(cells.values.sum(axis=1)).ravel()
    assert 0.15 < ratio.min() < 0.3 < 0.5 < ratio.max() < 0.75
    gone = (np.asarray(changed.values.sum(axis=0)).ravel() == 0) & (np.asarray(cells.values.sum(axis=0)).ravel() > 50)
    assert 0.1 < gone.mean() < 0.3
    assert (changed.values > cells.values).nnz == 0
    logged = disturb(Expression(cells.expression, log_normalised=True), seed=0)
    values = logged.values.toarray()
    assert np.array_equal(values[values > 0], cells.expression.toarray()[values > 0])
    assert logged.values.nnz < 0.9 * cells.expression.nnz


def test_a_disturbed_round_asks_about_disturbed_cells(fitted):
    cells, codes = fitted[2], fitted[3]
    rounds = [rounds_of(codes, 4, 0, is_disturbed=is_disturbed) for is_disturbed in (False, True)]
    _, held_out = fit_voters(cells, codes, num_labels=3, rounds=rounds)
    for answers in held_out.values():
        plain, disturbed = (answers[number, np.arange(len(codes)), codes].mean() for number in range(2))
        assert disturbed < plain
