"""An annotator of cell types: tuned logistic regression and its companions, their blend, and two kinds of doubt."""

# C cells, T test cells, K labels

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.adaptation import adapt_frequencies, nearest_neighbours, smooth_over_neighbours
from cytoray.evaluation.conformal import PredictionSets, fit_prediction_sets
from cytoray.evaluation.splits import Split, stratified_folds
from cytoray.evaluation.stacking import Choice, choose_blend
from cytoray.evaluation.voters import Expression, Round, Voter, fit_voters

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
BASELINE = "genes"
NUM_FOLDS = 5
FEW_TRAINING_CELLS, MANY_FOLDS = 500, 10  # below, there are more inner folds, since each cell counts
LEVEL = 0.9  # of prediction sets
NUM_NEAREST = 15


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """C cells with their labels, and the batch of each if it is known."""

    expression: Expression
    labels: tuple[str, ...]
    uri: str
    batches: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of values, genes and labels."""
        found = hashlib.sha256()
        for array in (self.expression.values.indptr, self.expression.values.indices, self.expression.values.data):
            found.update(np.ascontiguousarray(array).tobytes())
        found.update("\0".join(self.labels).encode())
        return found.hexdigest()

    def take(self, rows: Int64) -> LabelledCells:
        """Return some of the cells."""
        batches = None if self.batches is None else tuple(self.batches[row] for row in rows)
        return replace(
            self, expression=self.expression.take(rows), labels=tuple(self.labels[row] for row in rows), batches=batches
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """Everything that answers: voters and their blends, prediction sets, and the training cells' own distances."""

    labels: tuple[str, ...]
    voters: Mapping[str, Voter]
    choice: Choice
    frequencies: Float64  # (K,) of the training labels
    sets: PredictionSets
    training: npt.NDArray[np.float32]  # (C, P) components of the training cells
    codes: Int64  # (C,) their labels


@dataclass(frozen=True, eq=False)
class Answers:
    """Probabilities of the test cells of one split, and what else is scored."""

    split: Split
    product: Float64  # (T, K)
    baseline: Float64
    floor: Int64  # (T,) the commonest label
    strangeness: Float64  # (T,) distance to the training cells of the predicted label, relative to theirs
    sets: npt.NDArray[np.bool_]  # (T, K)
    adapted: Float64 | None  # (T, K), transductive
    choice: Choice


def fit_annotator(cells: LabelledCells, *, labels: Sequence[str], elsewhere: bool = False, seed: int = 0) -> Fitted:
    """Fit voters, blend and doubts on labelled cells; ``labels`` (K,) fixes the order, and may name absent ones.

    With ``elsewhere`` the cells to be answered come from another experiment: the choice then also looks at held-out
    cells that were disturbed accordingly. So it does for few training cells, whose folds alone say little.
    """
    names = np.asarray(labels, str)
    codes = np.searchsorted(names, np.asarray(cells.labels, str)).astype(np.int64)
    few = len(codes) < FEW_TRAINING_CELLS
    num_folds = MANY_FOLDS if few else NUM_FOLDS
    rounds = [
        Round(tuple(stratified_folds(cells.labels, num_folds=num_folds, seed=seed + number)), is_disturbed=number == 1)
        for number in range(2 if few or elsewhere else 1)
    ]
    voters, held_out = fit_voters(cells.expression, codes, num_labels=len(names), rounds=rounds, seed=seed)
    choice = choose_blend(held_out, codes, baseline=BASELINE, seed=seed)
    unseen = np.exp(choice.product.combine({name: answers[0] for name, answers in held_out.items()}))
    return Fitted(
        tuple(labels),
        voters,
        choice,
        np.bincount(codes, minlength=len(names)) / len(codes),
        fit_prediction_sets(unseen, codes, level=LEVEL),
        voters["components"].features.transform(cells.expression),
        codes,
    )


def answer(fitted: Fitted, query: Expression, split: Split, *, adapt: bool = False) -> Answers:
    """Answer the cells of a query with everything that was fitted; ``adapt`` also adapts to the query as a whole."""
    logged = {name: voter.log_probabilities(query) for name, voter in fitted.voters.items()}
    product = np.exp(fitted.choice.product.combine(logged))
    adapted = None
    components = fitted.voters["components"].features.transform(query)
    if adapt:
        frequencies = np.maximum(fitted.frequencies, 1e-6)
        neighbours, _ = nearest_neighbours(components)
        adapted = smooth_over_neighbours(adapt_frequencies(product, frequencies), neighbours, times=2)
    return Answers(
        split,
        product,
        np.exp(fitted.choice.baseline.combine(logged)),
        np.full(len(product), int(fitted.frequencies.argmax())),
        _strangeness(fitted, components, product.argmax(axis=1)),
        fitted.sets.contain(product),
        adapted,
        fitted.choice,
    )


def _strangeness(fitted: Fitted, components: npt.NDArray[np.float32], predicted: Int64) -> Float64:
    """Mean distance to the nearest training cells of the predicted label, over the median of those cells' own."""
    found = np.ones(len(components))
    for label in np.unique(predicted):
        own = fitted.training[fitted.codes == label]
        rows = np.flatnonzero(predicted == label)
        if len(own) < 2:
            continue
        usual = np.median(nearest_neighbours(own, num=NUM_NEAREST)[1].mean(axis=1))
        _, distances = nearest_neighbours(components[rows], own, num=NUM_NEAREST)
        found[rows] = distances.mean(axis=1) / max(float(usual), 1e-6)
    return found
