"""The gate: a blend of several annotators, chosen on cells that they have not seen, with the simple one a candidate.

A candidate is one voter or a blend of voters' log-probabilities, less a share of the training labels' log-frequency
(logit adjustment, Menon et al. 2021: macro-F1 counts rare labels as much as common ones, likelihood does not). It is
scored by the mean of macro-F1 and accuracy, so that neither is bought with the other.
"""

# C cells, K labels, V voters

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from cytoray.evaluation.calibration import fit_temperature
from cytoray.evaluation.classification import macro_f1, macro_f1_of_draws
from cytoray.evaluation.intervals import draw_rows

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the log-frequency that are tried
NUM_DRAWS = 200
PULL = 1.0  # towards equal weights, in cells


@dataclass(frozen=True, eq=False)
class Blend:
    """Weights of voters, what is taken off for a label's frequency, and a temperature."""

    weights: dict[str, float]
    adjustment: Float64  # (K,), subtracted from the log-probabilities
    temperature: float = 1.0

    def combine(self, answers: Mapping[str, Float64]) -> Float64:
        """Combine log-probabilities (C, K) by voter into those of the blend."""
        total = np.zeros_like(next(iter(answers.values())))
        for name, weight in self.weights.items():
            if weight > 0:  # answers of others need not be known
                total += weight * answers[name]
        return _normalised((total - self.adjustment) / self.temperature)


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen blend, the baseline tuned by the same rule, and the score of each candidate on held-out cells."""

    product: Blend
    baseline: Blend
    chosen: str
    why: str
    scores: dict[str, float]  # by candidate, each at its best adjustment: see the module, mean over rounds


def choose_blend(held_out: Mapping[str, Float64], codes_C: Int64, *, baseline: str, seed: int = 0) -> Choice:
    """Choose among single voters, their mean and their best blend on cells they have not seen.

    ``held_out``: log-probabilities (rounds, C, K) by voter. The ``baseline`` voter wins unless a candidate's score is
    higher by more than one standard error of the paired difference (bootstrap over cells).
    """
    num_labels = next(iter(held_out.values())).shape[2]
    frequency = np.bincount(codes_C, minlength=num_labels) / len(codes_C)
    log_prior = np.log(np.maximum(frequency, 0.5 / len(codes_C)))
    candidates: dict[str, dict[str, float]] = {baseline: {baseline: 1.0}}
    candidates |= {name: {name: 1.0} for name in held_out if name != baseline}
    if len(held_out) > 1:
        candidates["mean of all"] = dict.fromkeys(held_out, 1 / len(held_out))
        candidates["weighted blend"] = fit_weights(held_out, codes_C)
    adjusted = {
        name: _best_adjustment(weights, held_out, codes_C, log_prior, seed=seed) for name, weights in candidates.items()
    }
    scores = {name: score for name, (_, score) in adjusted.items()}
    best = max(scores, key=lambda name: scores[name])
    chosen, why = best, f"{best}: {scores[best]:.3f} on cells not seen, {baseline} {scores[baseline]:.3f}"
    if best != baseline:
        margin = scores[best] - scores[baseline]
        error = _standard_error(adjusted[best][0], adjusted[baseline][0], held_out, codes_C, seed)
        if margin <= error:
            chosen = baseline
            why = f"{baseline}: {best} is better by {margin:.3f} only, within one standard error ({error:.3f})"
    return Choice(
        _tempered(adjusted[chosen][0], held_out, codes_C),
        _tempered(adjusted[baseline][0], held_out, codes_C),
        chosen,
        why,
        scores,
    )


def fit_weights(held_out: Mapping[str, Float64], codes_C: Int64) -> dict[str, float]:
    """Return weights, not negative and of sum 1, under which the blend makes the true labels most likely."""
    names = list(held_out)
    answers = np.stack([held_out[name] for name in names])  # (V, rounds, C, K)
    num_voters, num_rounds, num_cells = answers.shape[:3]
    flat = answers.reshape(num_voters, num_rounds * num_cells, -1)
    truth = np.tile(codes_C, num_rounds)
    rows = np.arange(len(truth))

    def loss(weights: Float64) -> tuple[float, Float64]:
        """Return the loss of weights and its gradient."""
        blended = _normalised(np.tensordot(weights, flat, 1))
        slope = np.exp(blended)
        slope[rows, truth] -= 1
        pull = weights - 1 / num_voters
        gradient = np.array([(slope * voter).sum() for voter in flat]) / num_rounds + 2 * PULL * pull
        return float(-blended[rows, truth].sum() / num_rounds + PULL * pull @ pull), gradient

    found = minimize(
        loss, np.full(num_voters, 1 / num_voters), jac=True, bounds=[(0, None)] * num_voters, method="L-BFGS-B"
    )
    weights = found.x / found.x.sum() if found.x.sum() > 0 else np.full(num_voters, 1 / num_voters)
    return {name: float(weight) for name, weight in zip(names, weights, strict=True)}


def _best_adjustment(
    weights: dict[str, float], held_out: Mapping[str, Float64], codes_C: Int64, log_prior: Float64, *, seed: int
) -> tuple[Blend, float]:
    """The mean of those shares of the log-frequency that are within one standard error of the best, and its score.

    The best share itself is chance to a large part: of few cells many shares are as good.
    """
    blends = [Blend(weights, share * log_prior) for share in SHARES]
    scores = [_mean_score(blend, held_out, codes_C) for blend in blends]
    best = int(np.argmax(scores))
    errors = [0.0 if blend is blends[best] else _standard_error(blends[best], blend, held_out, codes_C, seed)
              for blend in blends]  # fmt: skip
    good = [share for share, score, error in zip(SHARES, scores, errors, strict=True) if scores[best] - score <= error]
    chosen = Blend(weights, float(np.mean(good)) * log_prior)
    return chosen, _mean_score(chosen, held_out, codes_C)


def _mean_score(blend: Blend, held_out: Mapping[str, Float64], codes_C: Int64) -> float:
    """Mean score of a blend over rounds."""
    num_labels = len(blend.adjustment)
    return float(np.mean([_score(codes_C, row, num_labels) for row in _called(blend, held_out)]))


def _score(truth: Int64, called: Int64, num_labels: int) -> float:
    return (macro_f1(truth, called, num_labels) + float((truth == called).mean())) / 2


def _called(blend: Blend, held_out: Mapping[str, Float64]) -> list[Int64]:
    """The labels that a blend gives in each round, (C,)."""
    num_rounds = len(next(iter(held_out.values())))
    return [
        blend.combine({name: held_out[name][number] for name in blend.weights}).argmax(axis=1)
        for number in range(num_rounds)
    ]


def _standard_error(first: Blend, second: Blend, held_out: Mapping[str, Float64], codes_C: Int64, seed: int) -> float:
    """Standard error of the difference of two blends' scores, by the paired bootstrap over cells."""
    num_labels, num_cells = len(first.adjustment), len(codes_C)
    draws = draw_rows(np.arange(num_cells), num_draws=NUM_DRAWS, seed=seed)
    times_DC = np.stack([np.bincount(rows, minlength=num_cells) for rows in draws]).astype(np.float64)

    def scores(blend: Blend) -> Float64:
        """Score of each draw, mean over rounds."""
        rounds = [
            (macro_f1_of_draws(times_DC, codes_C, row, num_labels) + times_DC @ (codes_C == row) / num_cells) / 2
            for row in _called(blend, held_out)
        ]
        return np.asarray(np.mean(rounds, axis=0))

    return float(np.std(scores(first) - scores(second)))


def _tempered(blend: Blend, held_out: Mapping[str, Float64], codes_C: Int64) -> Blend:
    """The blend with the temperature under which held-out labels are most likely."""
    first = blend.combine({name: held_out[name][0] for name in blend.weights})
    return Blend(blend.weights, blend.adjustment, fit_temperature(first, codes_C))


def _normalised(logits_CK: Float64) -> Float64:
    largest = logits_CK.max(axis=1, keepdims=True)
    shifted = logits_CK - largest
    normalised: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normalised
