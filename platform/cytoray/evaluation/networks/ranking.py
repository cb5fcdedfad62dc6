"""Join evidence of different scales: each becomes a percentile among its rivals, and an edge's weight is their mean.

The rivals of an edge are the other targets of its factor, so a factor of strong evidence does not win by that alone:
its strongest targets are those on which the kinds of evidence agree. Ranks among the factors of a target, alone or
averaged with these, found fewer known edges of factors that are no part of the figures in docs/networks.md.
"""

# T transcription factors, G targets, E kinds of evidence

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from cytoray.evaluation.networks.cells import Float32, Float64

Bool = npt.NDArray[np.bool_]
_STRENGTH = 1.0  # of the penalty of learned weights
_ROWS_AT_A_TIME = 64


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


def aggregate(ranked: Mapping[str, Float32], weights: Mapping[str, float]) -> Float32:
    """Return the weighted mean (T, G) of percentiles; evidence without a weight does not count."""
    total = sum(weights.get(name, 0.0) for name in ranked)
    assert total > 0, "no evidence has a weight"
    first = next(iter(ranked.values()))
    found = np.zeros(first.shape, np.float32)
    for name, values in ranked.items():
        if weight := weights.get(name, 0.0):
            found += np.float32(weight / total) * values
    return found


def equal_weights(ranked: Mapping[str, Float32]) -> dict[str, float]:
    """Return equal weights of all evidence, with the sum 1."""
    return {name: 1.0 / len(ranked) for name in ranked}


def learn_weights(ranked: Mapping[str, Float32], truth: Bool, valid: Bool) -> dict[str, float]:
    """Learn weights of evidence from known edges by logistic regression; negative ones become 0.

    ``truth`` (T, G): pairs known to be edges. Only factors with known edges count, each with its edges and non-edges
    alike. Equal weights if no evidence separates edges from other pairs.
    """
    from sklearn.linear_model import LogisticRegression

    rows = (truth & valid).any(axis=1)
    chosen = valid[rows]
    known = truth[rows][chosen]
    if not rows.any() or known.all():
        return equal_weights(ranked)
    features = np.stack([values[rows][chosen] for values in ranked.values()], axis=1).astype(np.float64)
    balance: Float64 = np.where(known, 0.5 / known.mean(), 0.5 / (1 - known.mean()))
    fitted = LogisticRegression(C=_STRENGTH).fit(features, known, sample_weight=balance)
    found = np.maximum(fitted.coef_[0], 0)
    if not found.sum() > 0:
        return equal_weights(ranked)
    return dict(zip(ranked, (found / found.sum()).tolist(), strict=True))
