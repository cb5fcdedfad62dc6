"""Fit a mapper to labelled cells: its space, its blend of voters and its doubts, on folds of the reference alone.

Tuned logistic regression on genes and the space of genes' components are always candidates: another space is taken
only if the votes of its neighbours are better beyond the paired 90 % interval, another blend by more than one standard
error. With batches, folds are whole batches.
"""

# C cells, H cells of a fold that were held out, D width of embeddings, K labels

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from cytoray import progress
from cytoray.evaluation.classification import macro_f1
from cytoray.evaluation.conformal import fit_prediction_sets, fit_strangeness
from cytoray.evaluation.intervals import compare, draw_rows
from cytoray.evaluation.splits import Split, grouped_folds, stratified_folds
from cytoray.evaluation.stacking import Choice, choose_blend
from cytoray.evaluation.voters import Expression, Round, Voter, disturb, fit_components, fit_voters
from cytoray.tasks.mapping.index import build_index
from cytoray.tasks.mapping.mapper import NEIGHBOURS, Embed, Mapper
from cytoray.tasks.mapping.oddness import fit_oddness
from cytoray.tasks.mapping.spaces import COMPONENTS, fit_discriminants, fit_spaces
from cytoray.tasks.mapping.votes import num_neighbours, vote

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
BASELINE = "genes"
NUM_FOLDS, FEW_CELLS, MANY_FOLDS = 5, 500, 10
NUM_DRAWS = 200
LEVEL = 0.9  # of the sets that make a cell ambiguous


@dataclass(frozen=True, eq=False)
class Fitted:
    """A mapper, and how it was chosen."""

    mapper: Mapper
    choice: Choice
    space_scores: dict[str, float]  # macro-F1 of the neighbours' votes on held-out cells, by space
    why_space: str


FitMapper = Callable[..., Fitted]  # ``fit_mapper``, or a function that keeps what it has fitted


@dataclass(eq=False)
class _HeldOut:
    """Of cells when they were held out, by space: votes (rounds, C, K), and mean distances (rounds, C)."""

    votes: dict[str, Float64] = field(default_factory=dict)
    distances: dict[str, Float64] = field(default_factory=dict)
    oddness: list[Float64] = field(default_factory=list)  # (C,) of each round


def fit_mapper(
    cells: Expression,
    codes_C: Int64,
    labels: tuple[str, ...],
    *,
    batches: tuple[str, ...] | None = None,
    embed: Embed | None = None,
    seed: int = 0,
    space: str | None = None,
    advance: progress.Advance = progress.silent,
) -> Fitted:
    """Fit a mapper to C labelled cells; ``space`` fixes the space, which is chosen otherwise.

    ``advance`` counts steps, of which there are ``num_steps``.
    """
    rounds = plan_rounds([labels[code] for code in codes_C], batches, seed=seed)
    voters, answers = fit_voters(cells, codes_C, num_labels=len(labels), rounds=rounds, seed=seed)
    advance(1, "voters of genes")
    embeddings = None if embed is None else embed(cells)
    advance(1, "embeddings")
    fold_of = _Fold(cells, codes_C, len(labels), embeddings, embed, seed)
    held_out = _HeldOut()
    for number, round_ in enumerate(rounds):
        odd = np.zeros(len(codes_C))
        for place, split in enumerate(round_.folds):
            found, odd[split.test] = fold_of(split, disturbed=seed + place if round_.is_disturbed else None)
            for name, (votes, distances) in found.items():
                shape = (len(rounds), len(codes_C))
                whole = held_out.votes.setdefault(name, np.full((*shape, len(labels)), -np.log(len(labels))))
                whole[number, split.test] = votes
                held_out.distances.setdefault(name, np.zeros(shape))[number, split.test] = distances
            advance(1 / len(rounds) / len(round_.folds), "neighbours")
        held_out.oddness.append(odd)
    return _assemble(cells, codes_C, labels, (voters, answers, held_out), (embeddings, seed, space))


_Learned = tuple[dict[str, Voter], dict[str, Float64], _HeldOut]
_How = tuple[Float32 | None, int, str | None]  # embeddings, seed, and the space asked for


def num_steps() -> int:
    """Return the steps of a fit that ``advance`` counts."""
    return 3


def plan_rounds(labels: list[str], batches: tuple[str, ...] | None, *, seed: int) -> list[Round]:
    """Return folds of cells (of whole batches if there are several), and again with cells of another experiment."""
    num_folds = MANY_FOLDS if len(labels) < FEW_CELLS else NUM_FOLDS
    if batches is not None and len(set(batches)) > 1:
        first = grouped_folds(batches, num_folds=NUM_FOLDS, seed=seed)
    else:
        first = stratified_folds(labels, num_folds=num_folds, seed=seed)
    second = stratified_folds(labels, num_folds=num_folds, seed=seed + 1)
    return [Round(tuple(first)), Round(tuple(second), is_disturbed=True)]


class _Fold:
    """Neighbours of held-out cells, and their distances, in every space."""

    def __init__(
        self, cells: Expression, codes: Int64, num_labels: int, embeddings: Float32 | None, embed: Embed | None,
        seed: int,
    ) -> None:  # fmt: skip
        self._cells, self._codes, self._num_labels, self._seed = cells, codes, num_labels, seed
        self._embeddings, self._embed = embeddings, embed

    def __call__(self, split: Split, *, disturbed: int | None) -> tuple[dict[str, tuple[Float64, Float64]], Float64]:
        """Return votes (H, K) and mean distances (H,) by space, and how odd the cells are for their label (H,)."""
        codes, seen = self._codes[split.train], self._cells.take(split.train)
        unseen = self._cells.take(split.test)
        if disturbed is not None:
            unseen = disturb(unseen, seed=disturbed)
        features = fit_components(seen, seed=self._seed)
        components, queries = features.transform(seen), features.transform(unseen)
        embeddings = others = None
        if self._embed is not None and self._embeddings is not None:
            embeddings = self._embeddings[split.train]
            others = self._embeddings[split.test] if disturbed is None else self._embed(unseen)
        counts = np.bincount(codes, minlength=self._num_labels)
        found = {}
        for name, space in fit_spaces(features, components, codes, embeddings).items():
            index = build_index(space.points(components, embeddings))
            places, distances = index.search(space.points(queries, others), num_neighbours(len(codes)))
            found[name] = vote(distances, codes[places], counts), distances.mean(axis=1, dtype=np.float64)
        discriminants = fit_discriminants(components, codes)
        oddness = fit_oddness(components, codes, discriminants, num_labels=self._num_labels, seed=self._seed)
        return found, oddness.score(queries, self._codes[split.test])


def _assemble(cells: Expression, codes_C: Int64, labels: tuple[str, ...], learned: _Learned, how: _How) -> Fitted:
    """Choose space and blend, calibrate, and fit the space on all cells."""
    voters, answers, held_out = learned
    embeddings, seed, wanted = how
    scores, chosen, why = choose_space(held_out.votes, codes_C, len(labels), seed=seed)
    if wanted is not None:
        chosen, why = wanted, f"{wanted}: as asked for"
    candidates = {**answers, NEIGHBOURS: held_out.votes[chosen]}
    choice = choose_blend(candidates, codes_C, baseline=BASELINE, seed=seed)
    unseen = np.exp(choice.product.combine({name: found[0] for name, found in candidates.items()}))
    features = voters["components"].features
    components = features.transform(cells)
    spaces = fit_spaces(features, components, codes_C, embeddings)
    oddness = fit_oddness(
        components, codes_C, fit_discriminants(components, codes_C), num_labels=len(labels), seed=seed
    )
    twice = np.tile(codes_C, len(held_out.oddness))
    known = fit_strangeness(np.concatenate(held_out.oddness), twice, num_labels=len(labels))
    mapper = Mapper(
        labels=labels,
        counts=np.bincount(codes_C, minlength=len(labels)),
        num_neighbours=num_neighbours(len(codes_C)),
        space=spaces[chosen],
        voters=voters,
        product=choice.product,
        sets=fit_prediction_sets(unseen, codes_C, level=LEVEL),
        oddness=replace(oddness, known=known),
        quality=fit_strangeness(held_out.distances[chosen].ravel(), twice, num_labels=len(labels)),
        shares=_shares(cells),
        baseline=choice.baseline,
    )
    return Fitted(mapper, choice, scores, why)


def choose_space(
    votes: Mapping[str, Float64], codes_C: Int64, num_labels: int, *, seed: int = 0
) -> tuple[dict[str, float], str, str]:
    """Return the macro-F1 of each space on held-out cells, the chosen space, and why.

    ``votes``: log-probabilities (rounds, C, K). The components of genes stay unless another is surely better.
    """
    called = {name: found.argmax(axis=2) for name, found in votes.items()}

    def score(name: str, rows: Int64) -> float:
        """Return the mean over rounds."""
        return float(np.mean([macro_f1(codes_C[rows], one[rows], num_labels) for one in called[name]]))

    every = np.arange(len(codes_C))
    scores = {name: score(name, every) for name in called}
    best = max(scores, key=lambda name: scores[name])
    summary = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    if best != COMPONENTS:
        draws = draw_rows(every, num_draws=NUM_DRAWS, seed=seed)
        better = compare(lambda rows: score(best, rows), lambda rows: score(COMPONENTS, rows), draws, all_rows=every)
        if better.verdict != "win":
            return scores, COMPONENTS, f"{COMPONENTS}: no space is surely better (macro-F1 of neighbours: {summary})"
    return scores, best, f"{best}: best macro-F1 of neighbours on cells not seen ({summary})"


def _shares(cells: Expression) -> Float32:
    """Mean share of each gene in a cell's counts, (V,)."""
    linear = cells.values if not cells.log_normalised else cells.values.expm1()
    totals = np.asarray(linear.sum(axis=1, dtype=np.float64)).ravel()
    weights = np.divide(1.0, totals, out=np.zeros_like(totals), where=totals > 0)
    return np.asarray(weights @ linear / max(int((totals > 0).sum()), 1), np.float32).ravel()
