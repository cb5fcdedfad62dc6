"""The simple annotators that a foundation model has to beat: the commonest label, and logistic regression."""

# C cells, G genes

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.errors import CorpusError

Float32 = npt.NDArray[np.float32]

COUNTS_PER_CELL = 10_000.0
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class BaselinePrediction:
    """Predictions of a fitted baseline: one label per test cell, and whether the fit converged."""

    predicted: tuple[str, ...]
    converged: bool
    num_genes: int


def majority_class(train_labels: Sequence[str], num_cells: int) -> tuple[str, ...]:
    """Call each of ``num_cells`` cells by the commonest training label (of equals, the first in sorted order)."""
    _require_cells(len(train_labels))
    names, counts = np.unique(np.asarray(train_labels, str), return_counts=True)
    return (str(names[np.argmax(counts)]),) * num_cells


def logistic_regression(
    train: sparse.csr_matrix,
    *,
    train_labels: Sequence[str],
    test: sparse.csr_matrix,
    log_normalised: bool = False,
    max_genes: int = 1500,
) -> BaselinePrediction:
    """Fit an L2 multinomial logistic regression on ``train`` (C, G) and call the cells of ``test`` (C', G).

    Values are raw counts, taken to log1p of counts per 10,000, unless ``log_normalised`` says that this was done. The
    ``max_genes`` genes of highest variance in ``train`` are used, each divided by its largest training value;
    only these are made dense. Raises CorpusError if there is no training cell.
    """
    assert train.shape[0] == len(train_labels), f"{train.shape[0]} cells but {len(train_labels)} labels"
    assert train.shape[1] == test.shape[1], f"{train.shape[1]} training genes but {test.shape[1]} test genes"
    _require_cells(len(train_labels))
    names = np.asarray(train_labels, str)
    if len(np.unique(names)) == 1:
        return BaselinePrediction(majority_class(train_labels, test.shape[0]), converged=True, num_genes=0)
    train, test = (matrix if log_normalised else _log_normalise(matrix) for matrix in (train, test))
    genes = _most_variable(train, max_genes)
    train, test = train[:, genes], test[:, genes]
    scale = _largest(train)
    classifier, converged = _fit(_scaled(train, scale), names)
    calls = classifier.predict(_scaled(test, scale)) if test.shape[0] else ()
    return BaselinePrediction(tuple(map(str, calls)), converged=converged, num_genes=len(genes))


def _require_cells(num_cells: int) -> None:
    if num_cells == 0:
        raise CorpusError("No training cells to fit a baseline on.", remedy="Hold out fewer cells.")


def _log_normalise(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    factors = np.divide(COUNTS_PER_CELL, totals, out=np.zeros_like(totals), where=totals > 0)
    return (sparse.diags_array(factors.astype(np.float32)) @ counts).tocsr().log1p()


def _most_variable(values: sparse.csr_matrix, max_genes: int) -> npt.NDArray[np.intp]:
    """Columns of the highest variances, ascending; zeros count, and nothing is made dense."""
    mean = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
    mean_square = np.asarray(values.power(2).mean(axis=0, dtype=np.float64)).ravel()
    return np.sort(np.argsort(mean**2 - mean_square, kind="stable")[:max_genes])


def _largest(values: sparse.csr_matrix) -> Float32:
    largest = np.asarray(abs(values).max(axis=0).todense(), np.float32).ravel()
    return np.where(largest > 0, largest, np.float32(1))


def _scaled(values: sparse.csr_matrix, scale: Float32) -> Float32:
    """Divide each chosen gene by its scale; dense, as a third of the most variable genes' entries are not zero."""
    dense: Float32 = values.astype(np.float32).toarray()
    dense /= scale
    return dense


def _fit(values: Float32, labels: npt.NDArray[np.str_]) -> tuple[LogisticRegression, bool]:
    """Fit, and return whether the solver converged instead of warning about it; other warnings pass through."""
    # One thread: the products are small, and on two busy cores waiting for a second thread took ten times as long.
    with threadpool_limits(1), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier = LogisticRegression(max_iter=MAX_ITERATIONS).fit(values, labels)
    others = [warning for warning in caught if not issubclass(warning.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return classifier, len(others) == len(caught)
