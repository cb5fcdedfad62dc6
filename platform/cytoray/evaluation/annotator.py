"""An annotator of cell types: tuned logistic regression and its companions, their blend, and two kinds of doubt.

    annotator, held_out = fit_annotator(cells, labels=names)
    found = annotator.annotate(other_cells)

The answers of a transformer can join the blend (`join_transformer`), if cells that it has not seen say that it helps.
All that is learned is arrays (`annotator_file`): answering needs numpy and scipy alone.
"""

# C cells, T cells to annotate, K labels, V genes of the vocabulary, P components

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.adaptation import nearest_neighbours
from cytoray.evaluation.conformal import PredictionSets, Strangeness, fit_prediction_sets, fit_strangeness
from cytoray.evaluation.splits import Split, stratified_folds
from cytoray.evaluation.stacking import Blend, Choice, choose_blend
from cytoray.evaluation.voters import Expression, GeneFeatures, Round, Voter, fit_components, fit_voters

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
BASELINE, BLEND, TRANSFORMER = "genes", "blend", "transformer"
NUM_FOLDS = 5
FEW_CELLS, MANY_FOLDS = 500, 10  # below, there are more inner folds, since each cell counts
REPEATED_BELOW, NUM_REPEATS = 1000, 3  # below, the folds are drawn several times: a choice by few cells is chance
LEVEL = 0.9  # of prediction sets
NUM_NEAREST = 15
FEWEST_TO_JUDGE = 100  # cells that a transformer has not seen, below which it does not join


@dataclass(frozen=True, eq=False)
class NearTraining:
    """The training cells by their components: how far a cell is from those of a label, relative to their own."""

    features: GeneFeatures
    points: Float32  # (C, P)
    codes: Int64  # (C,)
    usual: Float64  # (K,) median distance of the label's cells to their nearest ones; 1 for a label of one cell

    def distances(self, cells: Expression, predicted: Int64) -> Float64:
        """Return the mean distance (T,) to the nearest training cells of the predicted label, over what is usual."""
        points = self.features.transform(cells)
        found = np.ones(len(points))
        for label in np.unique(predicted):
            own, rows = self.points[self.codes == label], np.flatnonzero(predicted == label)
            if len(own) > 1:
                _, apart = nearest_neighbours(points[rows], own, num=NUM_NEAREST)
                found[rows] = apart.mean(axis=1) / self.usual[label]
        return found


@dataclass(frozen=True, eq=False)
class Annotation:
    """The answer of an annotator for T cells."""

    probabilities: Float64  # (T, K)
    baseline: Float64  # (T, K), of tuned logistic regression alone
    in_set: npt.NDArray[np.bool_]  # (T, K) labels that fit the cell, the likeliest always among them
    distances: Float64  # (T,) to the training cells of the predicted label, 1 being usual
    unseen_p: Float64  # (T,) how probable so great a distance is for a cell of the predicted label


@dataclass(frozen=True, eq=False)
class Annotator:
    """Everything that answers: voters, their blend, with a transformer or not, prediction sets, training cells."""

    labels: tuple[str, ...]  # (K,)
    voters: Mapping[str, Voter]
    choice: Choice  # among the voters
    frequencies: Float64  # (K,) of the training labels
    sets: PredictionSets
    near: NearTraining
    strangeness: Strangeness
    joined: Choice | None = None  # between the voters' blend and a transformer; None without one

    @property
    def uses_transformer(self) -> bool:
        """Whether the transformer's answers count."""
        return self.joined is not None and self.joined.product.weights.get(TRANSFORMER, 0) > 0

    def annotate(self, cells: Expression, *, transformer: Float64 | None = None) -> Annotation:
        """Annotate T cells; ``transformer``: its log-probabilities (T, K), required if its answers count."""
        logged = {name: voter.log_probabilities(cells) for name, voter in self.voters.items()}
        product = self.choice.product.combine(logged)
        if self.joined is not None and self.uses_transformer:
            assert transformer is not None, "the transformer's answers are part of the blend"
            product = self.joined.product.combine({BLEND: product, TRANSFORMER: transformer})
        probabilities = np.exp(product)
        predicted = probabilities.argmax(axis=1)
        distances = self.near.distances(cells, predicted)
        return Annotation(
            probabilities,
            np.exp(self.choice.baseline.combine(logged)),
            self.sets.contain(probabilities),
            distances,
            self.strangeness.p_values(distances, predicted),
        )


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The blend's answers to its own training cells, each from voters that have not seen the cell."""

    codes: Int64  # (C,)
    blend: Float64  # (C, K) log-probabilities


def fit_annotator(
    cells: Expression,
    names: Sequence[str],
    *,
    labels: Sequence[str],
    elsewhere: bool = False,
    seed: int = 0,
) -> tuple[Annotator, HeldOut]:
    """Fit voters, blend and doubts on cells with the labels ``names``; ``labels`` (K,), sorted, may have absent ones.

    With ``elsewhere`` the cells to be annotated come from another experiment: the choice then also looks at held-out
    cells that were disturbed accordingly. So it does for few training cells, whose folds alone say little.
    """
    known = np.asarray(labels, str)
    codes = np.searchsorted(known, np.asarray(names, str)).astype(np.int64)
    few = len(codes) < FEW_CELLS
    num_folds = MANY_FOLDS if few else NUM_FOLDS
    disturbed = [False] * (NUM_REPEATS if len(codes) < REPEATED_BELOW else 1) + [True] * (few or elsewhere)
    rounds = [
        Round(tuple(stratified_folds(names, num_folds=num_folds, seed=seed + number)), is_disturbed=is_disturbed)
        for number, is_disturbed in enumerate(disturbed)
    ]
    voters, held_out = fit_voters(cells, codes, num_labels=len(known), rounds=rounds, seed=seed)
    choice = choose_blend(held_out, codes, baseline=BASELINE, seed=seed)
    blend = choice.product.combine({name: each[0] for name, each in held_out.items()})
    used = {BASELINE, "components", *(name for name, weight in choice.product.weights.items() if weight > 0)}
    annotator = Annotator(
        tuple(labels),
        {name: voter for name, voter in voters.items() if name in used},
        choice,
        np.bincount(codes, minlength=len(known)) / len(codes),
        fit_prediction_sets(np.exp(blend), codes, level=LEVEL),
        _near(voters["components"].features, cells, codes, len(known)),
        _strangeness(cells, codes, rounds[0].folds[0], len(known), seed),
    )
    return annotator, HeldOut(codes, blend)


def join_transformer(
    annotator: Annotator, held_out: HeldOut, *, rows: Int64, answers: Float64, seed: int = 0
) -> Annotator:
    """Return the annotator with a transformer in its blend, if that is better on training cells it has not seen.

    ``rows``: these cells; ``answers``: the transformer's log-probabilities (rows, K).
    The blend of voters stays unless a candidate is better by more than one standard error.
    """
    if len(rows) < FEWEST_TO_JUDGE:
        return annotator
    both = {BLEND: held_out.blend[rows][None], TRANSFORMER: answers[None]}
    codes = held_out.codes[rows]
    joined = choose_blend(both, codes, baseline=BLEND, seed=seed)
    found = replace(annotator, joined=joined)
    if not found.uses_transformer:
        return replace(found, joined=replace(joined, product=Blend({BLEND: 1.0}, np.zeros(len(annotator.labels)))))
    unseen = np.exp(joined.product.combine({name: each[0] for name, each in both.items()}))
    return replace(found, sets=fit_prediction_sets(unseen, codes, level=LEVEL))


def _near(features: GeneFeatures, cells: Expression, codes: Int64, num_labels: int) -> NearTraining:
    points = features.transform(cells)
    usual = np.ones(num_labels)
    for label in np.unique(codes):
        own = points[codes == label]
        if len(own) > 1:
            usual[label] = max(float(np.median(nearest_neighbours(own, num=NUM_NEAREST)[1].mean(axis=1))), 1e-6)
    return NearTraining(features, points, codes, usual)


def _strangeness(cells: Expression, codes: Int64, fold: Split, num_labels: int, seed: int) -> Strangeness:
    """Distances of one fold's cells to the other training cells of their own label, by what these alone tell."""
    others = cells.take(fold.train)
    near = _near(fit_components(others, seed=seed), others, codes[fold.train], num_labels)
    known = np.isin(codes[fold.test], codes[fold.train])
    rows = fold.test[known]
    return fit_strangeness(near.distances(cells.take(rows), codes[rows]), codes[rows], num_labels=num_labels)
