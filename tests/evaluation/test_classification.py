"""Scores of predicted cell types, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
from sklearn import metrics

from cytoray.errors import CorpusError
from cytoray.evaluation.classification import score_classification


def test_scores_of_four_cells_are_those_worked_out_by_hand():
    scores = score_classification(["B", "B", "B", "T"], ["B", "B", "T", "T"], labels=["T", "B", "NK"])

    assert scores.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.accuracy == scores.micro_f1 == 0.75
    t_cells, b_cells, nk_cells = scores.per_label
    assert (t_cells.label, t_cells.precision, t_cells.recall, t_cells.num_true, t_cells.num_predicted) == (
        "T", 0.5, 1.0, 1, 2,
    )  # fmt: skip
    assert (b_cells.precision, b_cells.recall, b_cells.f1) == (1.0, pytest.approx(2 / 3), pytest.approx(0.8))
    assert (nk_cells.precision, nk_cells.recall, nk_cells.f1, nk_cells.num_true) == (0.0, 0.0, 0.0, 0)
    assert scores.macro_precision == pytest.approx(0.75)  # NK, which no cell is, does not count
    assert scores.macro_recall == pytest.approx(5 / 6)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 0.8) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = [f"type {n}" for n in range(12)]
    truth = rng.choice(labels[:9], 300, p=rng.dirichlet(np.ones(9))).tolist()  # three labels never occur in the truth
    predicted = [t if rng.random() < 0.5 else str(rng.choice(labels[2:])) for t in truth]

    scores = score_classification(truth, predicted, labels=labels)

    present = sorted(set(truth))
    macro = metrics.precision_recall_fscore_support(truth, predicted, labels=present, average="macro", zero_division=0)
    assert (scores.macro_precision, scores.macro_recall, scores.macro_f1) == pytest.approx(macro[:3])
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert scores.micro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="micro"))
    assert np.array_equal(scores.confusion, metrics.confusion_matrix(truth, predicted, labels=labels))
    each = metrics.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    rows = [(row.precision, row.recall, row.f1, row.num_true) for row in scores.per_label]
    assert np.allclose(rows, np.transpose(each))


def test_labels_nobody_announced_are_appended_so_that_no_cell_is_lost():
    scores = score_classification(["new", "A", "A"], ["A", "other", "A"], labels=["A"])

    assert scores.labels == ("A", "new", "other")
    assert scores.num_cells == 3
    assert scores.accuracy == pytest.approx(1 / 3)


def test_dictionary_survives_json_unchanged():
    document = score_classification(np.array(["Б", "β"]), np.array(["Б", "Б"]), labels=["Б", "β"]).as_dict()

    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["confusion"] == [[1, 0], [1, 0]]
    assert document["per_label"][1] == {
        "label": "β", "precision": 0.0, "recall": 0.0, "f1": 0.0, "num_true": 1, "num_predicted": 0,
    }  # fmt: skip


def test_no_cell_to_score_is_an_error_with_a_remedy():
    with pytest.raises(CorpusError, match="No held-out cell") as error:
        score_classification([], [], labels=["A"])
    assert error.value.remedy


def test_confusion_matrix_cannot_be_changed_afterwards():
    scores = score_classification(["A"], ["A"], labels=["A"])
    with pytest.raises(ValueError, match="read-only"):
        scores.confusion[0, 0] = 7
