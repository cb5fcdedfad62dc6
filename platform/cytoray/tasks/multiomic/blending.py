"""Fit all predictors of proteins, and blend them per protein by their answers on cells that they have not seen.

Each simple method (ridge, neighbours, kernel on components of expression), tuned, is a candidate as well; the best of
them is the baseline, chosen by the same rule on the same cells.
"""

# C cells, P proteins, K members, L rounds

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cytoray.evaluation.splits import Split
from cytoray.evaluation.voters import Expression, disturb
from cytoray.tasks.multiomic.members import Member, Option, Recipe, fit_member
from cytoray.tasks.multiomic.paired import Float32, Float64, Int64
from cytoray.tasks.multiomic.scoring import draw_weights, mean_correlation, weighted_correlations
from cytoray.tasks.multiomic.views import NUM_LEADING, Views, fit_views

SIMPLE = ("ridge", "neighbours", "kernel")
TRANSFORMER = ("transformer ridge", "transformer kernel")
PULL = 0.02  # of the stacking weights towards equal ones, as a share of the cells
NUM_DRAWS = 200
_SIZES = (20, 30, 50)
_KERNEL_OPTIONS = tuple({"components": size, "sharpness": sharp} for size in _SIZES for sharp in (0.1, 0.3, 1.0, 3.0))
_RANK_OPTIONS = tuple({"components": 30, "sharpness": sharp} for sharp in (0.3, 1.0, 3.0))
RECIPES: Mapping[str, Recipe] = {
    "ridge": Recipe("ridge", ("expression",), tuple({"components": size} for size in _SIZES)),
    "neighbours": Recipe(
        "neighbours",
        ("expression",),
        tuple({"components": size, "neighbours": num} for size in _SIZES for num in (15, 30, 60)),
    ),
    "kernel": Recipe("kernel", ("expression",), _KERNEL_OPTIONS),
    "panel ridge": Recipe("ridge", ("expression", "panel"), ({"components": 50},)),
    "rank neighbours": Recipe("neighbours", ("ranks",), ({"components": 30, "neighbours": 30},)),
    "rank kernel": Recipe("kernel", ("ranks",), _RANK_OPTIONS),
    "network": Recipe("network", ("expression", "panel"), ({"components": NUM_LEADING},)),
    "rank network": Recipe("network", ("ranks", "panel"), ({"components": NUM_LEADING},)),
}
TRANSFORMER_RECIPES: Mapping[str, Recipe] = {
    "transformer ridge": Recipe("ridge", ("embedding",)),
    "transformer kernel": Recipe("kernel", ("embedding",), tuple({"sharpness": sharp} for sharp in (0.3, 1.0, 3.0))),
}


@dataclass(frozen=True)
class Rounds:
    """Folds of the training cells; with ``is_disturbed`` also their cells as another experiment would have them."""

    folds: tuple[Split, ...]
    is_disturbed: bool = False


@dataclass(frozen=True, eq=False)
class Blend:
    """Weights of members per protein, and an intercept: the prediction is their weighted sum."""

    weights: Mapping[str, Float64]  # (P,) by member
    intercept: Float64  # (P,)

    def combine(self, answers: Mapping[str, Float64]) -> Float64:
        """Combine answers (C, P) by member."""
        total = np.broadcast_to(self.intercept, next(iter(answers.values())).shape).copy()
        for name, weight_P in self.weights.items():
            total += weight_P * answers[name]
        return total


@dataclass(frozen=True, eq=False)
class Fitted:
    """Fitted views and members, the chosen blend and what it was chosen by."""

    views: Views
    members: Mapping[str, Member]
    blend: Blend
    baseline: str  # the best simple member
    transformer: str | None  # the best member that sees the transformer alone
    chosen: str
    why: str
    scores: Mapping[str, float]  # mean Pearson correlation on cells not seen, by candidate
    correlations: Float64  # (P,) of the blend on cells not seen
    residuals: Float64  # (C, P) of the blend on cells not seen: truth less prediction
    options: Mapping[str, Option]

    def predict(self, rna: Expression, embeddings: Float32 | None = None) -> tuple[Float64, dict[str, Float64]]:
        """Return the blend's prediction (C, P), and those of all members."""
        with threadpool_limits(1):
            inputs = self.views.transform(rna, embeddings)
            answers = {name: member.predict(inputs) for name, member in self.members.items()}
        return self.blend.combine(answers), answers


def fit_proteins(
    rna: Expression,
    targets_CP: Float64,
    rounds: Rounds,
    *,
    embeddings: Float32 | None = None,
    seed: int = 0,
) -> Fitted:
    """Fit every member, its options by their answers on held-out folds, and choose the blend by these answers."""
    recipes = dict(RECIPES) | (dict(TRANSFORMER_RECIPES) if embeddings is not None else {})
    with threadpool_limits(1):  # small products: two threads on busy cores took ten times as long
        held_out, options = _answer_held_out(recipes, rna, targets_CP, rounds, embeddings, seed)
        blend, chosen, why, scores = choose_blend(held_out, targets_CP, rounds.folds, seed=seed)
        views = fit_views(rna, targets_CP, embeddings=embeddings, seed=seed)
        inputs = views.transform(rna, embeddings)
        members = {
            name: fit_member(recipe, inputs, targets_CP, option=options[name], seed=seed)
            for name, recipe in recipes.items()
        }
    first = blend.combine({name: answers[0] for name, answers in held_out.items()})
    return Fitted(
        views,
        members,
        blend,
        _best(SIMPLE, scores),
        _best(TRANSFORMER, scores) if embeddings is not None else None,
        chosen,
        why,
        scores,
        weighted_correlations(targets_CP, first),
        targets_CP - first,
        options,
    )


def _answer_held_out(
    recipes: Mapping[str, Recipe],
    rna: Expression,
    targets_CP: Float64,
    rounds: Rounds,
    embeddings: Float32 | None,
    seed: int,
) -> tuple[dict[str, Float64], dict[str, Option]]:
    """By member its answers (L, C, P) on cells not seen, with its best option, and that option."""
    num_rounds = 1 + rounds.is_disturbed
    tried = {name: np.empty((len(recipe.options), num_rounds, *targets_CP.shape)) for name, recipe in recipes.items()}
    for place, fold in enumerate(rounds.folds):
        unseen = [rna.take(fold.test)]
        if rounds.is_disturbed:
            unseen.append(disturb(unseen[0], seed=seed + place))
        seen_too = None if embeddings is None else embeddings[fold.train]
        training = rna.take(fold.train)
        views = fit_views(training, targets_CP[fold.train], embeddings=seen_too, seed=seed)
        inputs = views.transform(training, seen_too)
        others = [views.transform(each, None if embeddings is None else embeddings[fold.test]) for each in unseen]
        for name, recipe in recipes.items():
            for number, option in enumerate(recipe.options):
                member = fit_member(recipe, inputs, targets_CP[fold.train], option=option, seed=seed)
                for round_, other in enumerate(others):
                    tried[name][number, round_, fold.test] = member.predict(other)
    held_out, options = {}, {}
    for name, answers in tried.items():
        scores = [np.mean([mean_correlation(targets_CP, each) for each in rounds_]) for rounds_ in answers]
        best = int(np.argmax(scores))
        held_out[name], options[name] = answers[best], recipes[name].options[best]
    return held_out, options


def choose_blend(
    held_out: Mapping[str, Float64], targets_CP: Float64, folds: Sequence[Split], *, seed: int = 0
) -> tuple[Blend, str, str, dict[str, float]]:
    """Choose a single member, the mean of all, or weights per protein, by the mean correlation on cells not seen.

    ``held_out`` has answers (L, C, P) by member. The weights that are judged on a fold come from the other folds. The
    best simple member stays unless something is better by more than one standard error of the difference.
    """
    num_proteins = targets_CP.shape[1]
    stacked = np.empty_like(next(iter(held_out.values())))
    for fold in folds:
        part = {name: answers[:, fold.train] for name, answers in held_out.items()}
        weights = fit_weights(part, targets_CP[fold.train])
        for round_ in range(len(stacked)):
            rows = {name: answers[round_, fold.test] for name, answers in held_out.items()}
            stacked[round_, fold.test] = weights.combine(rows)
    candidates = dict(held_out)
    candidates["mean of all"] = np.mean(list(held_out.values()), axis=0)
    candidates["weights per protein"] = stacked
    scores = {
        name: float(np.mean([mean_correlation(targets_CP, each) for each in answers]))
        for name, answers in candidates.items()
    }
    baseline = _best(SIMPLE, scores)
    best = max(scores, key=lambda name: scores[name])
    chosen, why = best, f"{best}: correlation {scores[best]:.3f} on cells not seen, {baseline} {scores[baseline]:.3f}"
    if best != baseline:
        margin = scores[best] - scores[baseline]
        error = _standard_error(candidates[best], candidates[baseline], targets_CP, seed)
        if margin <= error:
            chosen = baseline
            why = f"{baseline}: {best} is better by {margin:.3f} only, within one standard error ({error:.3f})"
    if chosen == "weights per protein":
        blend = fit_weights(held_out, targets_CP)
    else:
        names = list(held_out) if chosen == "mean of all" else [chosen]
        blend = Blend({name: np.full(num_proteins, 1 / len(names)) for name in names}, np.zeros(num_proteins))
    return blend, chosen, why, scores


def fit_weights(held_out: Mapping[str, Float64], targets_CP: Float64) -> Blend:
    """Return weights per protein, not negative, of the least squared error, pulled a little towards equal ones."""
    names = list(held_out)
    answers_KNP = np.stack([held_out[name].reshape(-1, targets_CP.shape[1]) for name in names])
    truth_NP = np.concatenate([targets_CP] * next(iter(held_out.values())).shape[0])
    weights_KP = np.zeros((len(names), truth_NP.shape[1]))
    intercept = np.zeros(truth_NP.shape[1])
    for protein in range(truth_NP.shape[1]):
        answers_NK, truth = answers_KNP[:, :, protein].T, truth_NP[:, protein]
        mean_K, mean = answers_NK.mean(axis=0), truth.mean()
        centred = answers_NK - mean_K
        pull = np.sqrt(PULL * len(truth) * max(float(truth.var()), 1e-12) / len(names))
        left = np.linalg.cholesky(centred.T @ centred + np.eye(len(names)) * max(pull**2, 1e-9)).T
        right = np.linalg.solve(left.T, centred.T @ (truth - mean) + pull**2 / len(names))
        weights_KP[:, protein] = nnls(left, right)[0]
        intercept[protein] = mean - mean_K @ weights_KP[:, protein]
    return Blend({name: weights_KP[place] for place, name in enumerate(names)}, intercept)


def _best(names: Sequence[str], scores: Mapping[str, float]) -> str:
    return max((name for name in names if name in scores), key=lambda name: scores[name])


def _standard_error(first: Float64, second: Float64, targets_CP: Float64, seed: int) -> float:
    """Standard error of the difference of two candidates' mean correlations, by the paired bootstrap over cells."""
    weights = draw_weights(np.arange(len(targets_CP)), num_draws=NUM_DRAWS, seed=seed)
    gaps = [
        np.nanmean(weighted_correlations(targets_CP, one, weights), axis=-1)
        - np.nanmean(weighted_correlations(targets_CP, other, weights), axis=-1)
        for one, other in zip(first, second, strict=True)
    ]
    return float(np.nanstd(np.mean(gaps, axis=0)))


def folds_of(units: Int64) -> int:
    """Return how many folds the members' answers come from: few of many cells, as each takes a while."""
    return 3 if len(units) >= 2000 else 5
