"""The baselines on planted cells: what they must find, and what must not upset them."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from cytoray.errors import CorpusError
from cytoray.evaluation import baselines
from cytoray.evaluation.baselines import logistic_regression, majority_class

NUM_GENES = 60


def planted_cells(num_cells, *, seed, num_types=3):
    """Poisson counts in which each type has four marker genes, under a depth that varies a hundredfold."""
    rng = np.random.default_rng(seed)
    types = rng.integers(0, num_types, num_cells)
    rates = np.ones((num_cells, NUM_GENES))
    for marker in range(4):
        rates[np.arange(num_cells), 4 * types + marker] = 20
    counts = rng.poisson(rates * 10 ** rng.uniform(-0.5, 1.5, (num_cells, 1)))
    return sparse.csr_matrix(counts.astype(np.float32)), [f"type {n}" for n in types]


def dense_logs(counts):
    dense = counts.toarray().astype(float)
    return np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)


def accuracy(truth, predicted):
    return np.mean(np.asarray(truth) == np.asarray(predicted))


def test_majority_class_calls_every_cell_by_the_commonest_label():
    assert majority_class(["B", "T", "T"], 4) == ("T", "T", "T", "T")
    assert majority_class(["T", "B"], 2) == ("B", "B")  # a tie does not depend on the order of the cells
    assert majority_class(["B"], 0) == ()


def test_logistic_regression_finds_planted_types_at_any_depth():
    train, train_labels = planted_cells(300, seed=0)
    test, test_labels = planted_cells(200, seed=1)

    result = logistic_regression(train, train_labels=train_labels, test=test)

    assert accuracy(test_labels, result.predicted) > 0.97
    assert accuracy(test_labels, majority_class(train_labels, 200)) < 0.5
    assert result.converged
    assert result.num_genes == NUM_GENES


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csr_array])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_predictions_equal_a_dense_calculation(form, dtype):
    train, _ = planted_cells(150, seed=2)
    test, _ = planted_cells(200, seed=3)
    # Labels that nothing in the cells explains: only the very same calculation makes the same calls.
    train_labels = np.random.default_rng(4).choice(["A", "B", "C"], 150).tolist()

    result = logistic_regression(
        form(train, dtype=dtype), train_labels=train_labels, test=form(test, dtype=dtype), max_genes=20
    )

    dense_train, dense_test = dense_logs(train), dense_logs(test)
    genes = np.argsort(dense_train.var(axis=0))[-20:]
    scale = dense_train[:, genes].max(axis=0)
    oracle = LogisticRegression(max_iter=1000).fit(dense_train[:, genes] / scale, train_labels)
    assert accuracy(oracle.predict(dense_test[:, genes] / scale), result.predicted) >= 0.98
    assert result.num_genes == 20


def test_log_normalised_values_are_taken_as_they_are():
    train, train_labels = planted_cells(150, seed=4)
    test, _ = planted_cells(80, seed=5)
    logged = [sparse.csr_matrix(dense_logs(counts)) for counts in (train, test)]

    from_counts = logistic_regression(train, train_labels=train_labels, test=test)
    from_logs = logistic_regression(logged[0], train_labels=train_labels, test=logged[1], log_normalised=True)

    assert from_logs.predicted == from_counts.predicted


def test_genes_are_chosen_by_their_variance_in_training_only():
    labels = ["A", "B"] * 20
    train, test = np.zeros((40, 3), np.float32), np.zeros((2, 3), np.float32)
    train[::2, 1] = 3  # tells A from B
    train[:, 2] = 9  # high, but the same everywhere
    test[0, 1], test[0, 0] = 3, 50  # varies in the test cells only

    result = logistic_regression(
        sparse.csr_matrix(train), train_labels=labels, test=sparse.csr_matrix(test), log_normalised=True, max_genes=1
    )

    assert result.predicted == ("A", "B")


def test_a_label_of_one_cell_and_labels_never_trained_on_do_no_harm():
    train, train_labels = planted_cells(120, seed=6)
    test, test_labels = planted_cells(100, seed=7, num_types=5)
    train_labels[0] = "alone"

    result = logistic_regression(train, train_labels=train_labels, test=test)

    assert set(result.predicted) <= set(train_labels)
    trained = [n for n, label in enumerate(test_labels) if label in train_labels]
    assert accuracy([test_labels[n] for n in trained], [result.predicted[n] for n in trained]) > 0.9


def test_one_training_label_is_the_answer_for_every_cell():
    train, _ = planted_cells(5, seed=8)
    assert logistic_regression(train, train_labels=["B"] * 5, test=train).predicted == ("B",) * 5


def test_cells_and_genes_without_counts_are_harmless():
    train, train_labels = planted_cells(60, seed=9)
    dense = train.toarray()
    dense[0], dense[:, 3] = 0, 0
    train, test = sparse.csr_matrix(dense), sparse.csr_matrix((2, NUM_GENES), dtype=np.float32)

    assert len(logistic_regression(train, train_labels=train_labels, test=test).predicted) == 2
    assert logistic_regression(train, train_labels=train_labels, test=train[:0]).predicted == ()


def test_inputs_are_left_as_they_were():
    train, train_labels = planted_cells(60, seed=10)
    before = train.copy()
    logistic_regression(train, train_labels=train_labels, test=train)
    assert (train != before).nnz == 0


def test_a_fit_cut_short_is_reported_not_warned_about(monkeypatch):
    train, train_labels = planted_cells(60, seed=11)
    monkeypatch.setattr(baselines, "MAX_ITERATIONS", 1)

    result = logistic_regression(train, train_labels=train_labels, test=train)

    assert result.converged is False
    assert len(result.predicted) == 60


def test_no_training_cell_is_an_error_with_a_remedy():
    nothing = sparse.csr_matrix((0, 3), dtype=np.float32)
    with pytest.raises(CorpusError, match="No training cell"):
        logistic_regression(nothing, train_labels=[], test=nothing)
    with pytest.raises(CorpusError, match="No training cell"):
        majority_class([], 3)
