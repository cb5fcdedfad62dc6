"""Score predicted cell types against true ones, so that a model and its baselines are compared by the same rules."""

# C cells, K labels

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import CorpusError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelScores:
    """How well one label was found; a ratio without a denominator is 0."""

    label: str
    precision: float
    recall: float
    f1: float
    num_true: int
    num_predicted: int


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """Scores of C cells; ratios lie in [0, 1], ``confusion[t, p]`` counts cells of ``labels[t]`` called ``labels[p]``.

    The macro scores are unweighted means over the labels that occur in the truth: a label nobody has cannot be found,
    and calls of it already cost recall where they are made. ``micro_f1`` equals ``accuracy``, as it must when each
    cell has one true and one predicted label; it is kept because published tables name it.
    """

    labels: tuple[str, ...]
    accuracy: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    micro_f1: float
    per_label: tuple[LabelScores, ...]  # in the order of labels
    confusion: Int64  # (K, K), read-only

    @property
    def num_cells(self) -> int:
        """Number of scored cells C."""
        return int(self.confusion.sum())

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain lists, strings and numbers, ready for ``json.dumps``."""
        return {
            "num_cells": self.num_cells,
            "accuracy": self.accuracy,
            "macro_precision": self.macro_precision,
            "macro_recall": self.macro_recall,
            "macro_f1": self.macro_f1,
            "micro_f1": self.micro_f1,
            "labels": list(self.labels),
            "per_label": [dict(vars(row)) for row in self.per_label],
            "confusion": self.confusion.tolist(),
        }


def score_classification(
    truth: Sequence[str], predicted: Sequence[str], *, labels: Sequence[str]
) -> ClassificationScores:
    """Score C predicted labels against C true ones.

    ``labels`` fixes the order of the table and of the confusion matrix; a label that occurs in the cells but not
    there is appended (sorted), so no cell is ever left out. Raises CorpusError if there is no cell to score.
    """
    assert len(truth) == len(predicted), f"{len(truth)} true labels but {len(predicted)} predicted ones"
    if len(truth) == 0:
        raise CorpusError("No held-out cells to score.", remedy="Hold out more cells, or give a larger data set.")
    all_labels = _all_labels(labels, truth, predicted)
    return score_confusion(_confusion(truth, predicted, all_labels), all_labels)


def score_confusion(confusion: Int64, labels: tuple[str, ...]) -> ClassificationScores:
    """Score a confusion matrix (K, K): counts of cells by true label (rows) and predicted label."""
    per_label = _per_label(confusion, labels)
    present = [row for row in per_label if row.num_true]
    accuracy = float(np.trace(confusion) / confusion.sum())
    return ClassificationScores(
        labels=labels,
        accuracy=accuracy,
        macro_precision=float(np.mean([row.precision for row in present])),
        macro_recall=float(np.mean([row.recall for row in present])),
        macro_f1=float(np.mean([row.f1 for row in present])),
        micro_f1=accuracy,
        per_label=per_label,
        confusion=confusion,
    )


def macro_f1(truth: Int64, predicted: Int64, num_labels: int) -> float:
    """Return the mean F1 over the labels that occur in ``truth``, codes (C,): the bootstrap asks thousands of times."""
    confusion = np.bincount(truth * num_labels + predicted, minlength=num_labels**2).reshape(num_labels, num_labels)
    hits, true, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    present = true > 0
    return float((2 * hits[present] / (true + called)[present]).mean())


def macro_f1_of_draws(times_DC: Float64, truth: Int64, predicted: Int64, num_labels: int) -> Float64:
    """Return ``macro_f1`` of each of D draws of C cells, (D,); ``times_DC``: how often each draw has each cell."""
    hits = _sums_by_code(times_DC * (truth == predicted), truth, num_labels)
    true, called = (_sums_by_code(times_DC, codes, num_labels) for codes in (truth, predicted))
    scores: Float64 = (2 * hits / np.maximum(true + called, 1)).sum(axis=1) / (true > 0).sum(axis=1)
    return scores


def _sums_by_code(values_DC: Float64, codes_C: Int64, num_codes: int) -> Float64:
    """Sum of the values of each code's cells, (D, num_codes)."""
    num_cells = len(codes_C)
    members = sparse.csr_matrix((np.ones(num_cells), (np.arange(num_cells), codes_C)), shape=(num_cells, num_codes))
    sums: Float64 = values_DC @ members
    return sums


def _all_labels(labels: Sequence[str], truth: Sequence[str], predicted: Sequence[str]) -> tuple[str, ...]:
    known = dict.fromkeys(map(str, labels))
    return (*known, *sorted({str(label) for label in (*truth, *predicted)} - known.keys()))


def _confusion(truth: Sequence[str], predicted: Sequence[str], labels: tuple[str, ...]) -> Int64:
    index = {label: position for position, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, ([index[label] for label in truth], [index[label] for label in predicted]), 1)
    confusion.setflags(write=False)
    return confusion


def _per_label(confusion: Int64, labels: tuple[str, ...]) -> tuple[LabelScores, ...]:
    hits, num_true, num_predicted = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(hits, num_predicted), _ratio(hits, num_true)
    f1 = _ratio(2 * hits, num_true + num_predicted)
    columns = (precision.tolist(), recall.tolist(), f1.tolist(), num_true.tolist(), num_predicted.tolist())
    return tuple(LabelScores(*row) for row in zip(labels, *columns, strict=True))


def _ratio(numerator: Int64, denominator: Int64) -> Float64:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
