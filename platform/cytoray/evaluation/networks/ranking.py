"""Join evidence of different scales: an edge's weight is the mean of what its evidence is worth.

Each kind of evidence becomes a normal score among the other targets of the same factor, times its reliability for that
factor: the correlation of two halves of the cells, stepped up to all of them (Spearman and Brown). That is the best
linear guess of the score that unlimited cells would give. Evidence that is noise for a factor so neither orders its
targets nor puts them among the strongest edges; nothing but the cells is needed to know it. Ranks among the factors of
a target, alone or averaged with these, found fewer known edges of factors that are no part of the figures in
docs/networks.md.
"""

# T transcription factors, G targets, H two halves of the cells

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from cytoray.evaluation.networks.cells import Float32, Float64

Bool = npt.NDArray[np.bool_]
_STRENGTH = 1.0  # of the penalty of learned weights
_ROWS_AT_A_TIME = 64
FEWEST_RIVALS = 3  # targets of a factor that a correlation of halves needs
LEAST = 0.01  # reliability: above 0, so that the targets of a factor without reliable evidence keep their order


def percentiles(evidence: Float32, valid: Bool) -> Float32:
    """Return evidence (T, G) as percentiles in [0, 1] among the targets of each factor.

    Ties share their mean rank; pairs that are not ``valid``, a factor with itself, are 0 and nobody's rivals.
    """
    found = np.zeros(evidence.shape, np.float32)
    for start in range(0, len(evidence), _ROWS_AT_A_TIME):
        rows = slice(start, start + _ROWS_AT_A_TIME)
        lowest = np.where(valid[rows], evidence[rows], -np.inf)
        ranks = rankdata(lowest, method="average", axis=1)
        missing = (~valid[rows]).sum(axis=1, keepdims=True)
        num = valid[rows].sum(axis=1, keepdims=True)
        shares = (ranks - missing - 0.5) / np.maximum(num, 1)
        found[rows] = np.where(valid[rows], shares, 0)
    return found


def normal_scores(evidence: Float32, valid: Bool) -> Float32:
    """Return evidence (T, G) as normal scores among the targets of each factor; pairs that are not valid are 0."""
    found: Float32 = np.where(valid, ndtri(percentiles(evidence, valid)), 0).astype(np.float32)
    return found


def reliabilities(halves_HTG: Float32, valid: Bool) -> Float64:
    """Return how reliable the mean of evidence of two halves of the cells is for each factor, (T,), from 0.01 to 1."""
    num = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    scores = [normal_scores(half, valid).astype(np.float64) for half in halves_HTG]
    first, second = (np.where(valid, each - each.sum(axis=1, keepdims=True) / num, 0) for each in scores)
    spreads = np.sqrt(np.square(first).sum(axis=1) * np.square(second).sum(axis=1))
    enough = (spreads > 0) & (valid.sum(axis=1) >= FEWEST_RIVALS)
    products = (first * second).sum(axis=1)
    shared = np.clip(np.divide(products, spreads, out=np.zeros_like(products), where=enough), 0, 1)
    found: Float64 = np.maximum(2 * shared / (1 + shared), LEAST)
    return found


def score_evidence(
    evidence: Mapping[str, Float32], reliability: Mapping[str, Float64], valid: Bool
) -> dict[str, Float32]:
    """Return all evidence as normal scores times their reliability, (T, G) each.

    Evidence without a reliability, as it does not depend on the cells, has the mean of the others': a factor
    without reliable evidence of cells gets no strong edges from gene sets alone.
    """
    usual = np.mean(list(reliability.values()), axis=0) if reliability else np.ones(len(valid))
    return {
        name: normal_scores(values, valid) * reliability.get(name, usual)[:, None].astype(np.float32)
        for name, values in evidence.items()
    }


def aggregate(scores: Mapping[str, Float32], weights: Mapping[str, float]) -> Float32:
    """Return the weights of edges (T, G) in [0, 1]: the normal distribution's share below the mean score.

    Evidence without a weight does not count; 0.5: nothing is known.
    """
    total = sum(weights.get(name, 0.0) for name in scores)
    assert total > 0, "no evidence has a weight"
    first = next(iter(scores.values()))
    found = np.zeros(first.shape, np.float32)
    for name, values in scores.items():
        if weight := weights.get(name, 0.0):
            found += np.float32(weight / total) * values
    return np.asarray(ndtr(found), np.float32)


def equal_weights(scores: Mapping[str, Float32]) -> dict[str, float]:
    """Return equal weights of all evidence, with the sum 1."""
    return {name: 1.0 / len(scores) for name in scores}


def learn_weights(scores: Mapping[str, Float32], truth: Bool, valid: Bool) -> dict[str, float]:
    """Learn weights of evidence from known edges by logistic regression; negative ones become 0.

    ``truth`` (T, G): pairs known to be edges. Only factors with known edges count, each with its edges and non-edges
    alike. Equal weights if no evidence separates edges from other pairs.
    """
    from sklearn.linear_model import LogisticRegression

    rows = (truth & valid).any(axis=1)
    chosen = valid[rows]
    known = truth[rows][chosen]
    if not rows.any() or known.all():
        return equal_weights(scores)
    features = np.stack([values[rows][chosen] for values in scores.values()], axis=1).astype(np.float64)
    balance: Float64 = np.where(known, 0.5 / known.mean(), 0.5 / (1 - known.mean()))
    fitted = LogisticRegression(C=_STRENGTH).fit(features, known, sample_weight=balance)
    found = np.maximum(fitted.coef_[0], 0)
    if not found.sum() > 0:
        return equal_weights(scores)
    return dict(zip(scores, (found / found.sum()).tolist(), strict=True))
