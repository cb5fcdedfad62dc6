"""Score a network beside a table of known edges, factor by factor, with the floor that degrees alone would reach.

A table of known edges is incomplete: pairs that it lacks count as negatives, so scores compare networks with each other
and with the floor, and are no shares of true edges.
"""

# T transcription factors, G targets

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from cytoray.evaluation.networks.cells import Float32, Float64, Int64
from cytoray.evaluation.networks.ranking import Bool

FEWEST_EDGES = 5  # known edges of a factor whose AUROC is computed
NUM_SHUFFLES = 10
SWAPS_PER_EDGE = 10


@dataclass(frozen=True, eq=False)
class KnownEdges:
    """Known edges among T factors and G targets."""

    edges: Bool  # (T, G)
    signs: npt.NDArray[np.int8]  # (T, G) 1 activation, -1 repression, 0 unknown
    valid: Bool  # (T, G) False for a factor with itself

    @property
    def scored(self) -> Int64:
        """Rows of the factors that have known edges enough, and other pairs."""
        num = (self.edges & self.valid).sum(axis=1)
        return np.flatnonzero((num >= FEWEST_EDGES) & (num < self.valid.sum(axis=1)))

    def take(self, rows: Int64) -> KnownEdges:
        """Return some of the factors."""
        return KnownEdges(self.edges[rows], self.signs[rows], self.valid[rows])


def factor_aurocs(weights: Float32, known: KnownEdges) -> Float64:
    """Return the AUROC of each scored factor: of ranking its known targets before all other targets."""
    found = []
    for row in known.scored:
        valid = known.valid[row]
        is_edge = known.edges[row, valid]
        ranks = rankdata(weights[row, valid])
        num, others = int(is_edge.sum()), int((~is_edge).sum())
        found.append((ranks[is_edge].sum() - num * (num + 1) / 2) / (num * others))
    return np.asarray(found, np.float64)


def early_precision_ratio(weights: Float32, known: KnownEdges) -> float:
    """Return the precision among as many top pairs as there are known edges, over that of random pairs.

    Of factors with known edges alone. Pairs of equal weight at the limit count by the share of them that fits.
    """
    values, is_edge = _candidates(weights, known)
    num = int(is_edge.sum())
    if num == 0:
        return float("nan")
    limit = np.partition(values, len(values) - num)[len(values) - num]
    above, at = values > limit, values == limit
    hits = is_edge[above].sum() + is_edge[at].mean() * (num - above.sum())
    return float(hits / num / is_edge.mean())


def precision_ratio(weights: Float32, known: KnownEdges) -> float:
    """Return the area under the precision-recall curve over that of random pairs (AUPRC ratio)."""
    from sklearn.metrics import average_precision_score

    values, is_edge = _candidates(weights, known)
    return float(average_precision_score(is_edge, values) / is_edge.mean()) if is_edge.any() else float("nan")


def sign_accuracy(correlations: Float32, known: KnownEdges) -> float | None:
    """Return the share of known signed edges whose correlation has the known sign; None without any.

    The mean of activations and repressions, since most known edges activate: 0.5 by chance.
    """
    shares = []
    for sign in (1, -1):
        chosen = known.edges & known.valid & (known.signs == sign) & (correlations != 0)
        if chosen.any():
            shares.append(float((np.sign(correlations[chosen]) == sign).mean()))
    return float(np.mean(shares)) if len(shares) == 2 else None


def shuffled(known: KnownEdges, *, seed: int) -> KnownEdges:
    """Return known edges with the same number of targets of each factor, and of factors of each target, by swaps."""
    rng = np.random.default_rng(seed)
    edges = known.edges & known.valid
    tfs, targets = (part.astype(np.int64) for part in np.nonzero(edges))
    for _ in range(SWAPS_PER_EDGE):
        order = rng.permutation(len(tfs))
        half = len(order) // 2
        for first, second in zip(order[:half].tolist(), order[half : 2 * half].tolist(), strict=True):
            a, b, c, d = tfs[first], targets[first], tfs[second], targets[second]
            if edges[a, d] or edges[c, b] or not (known.valid[a, d] and known.valid[c, b]):
                continue
            edges[a, b] = edges[c, d] = False
            edges[a, d] = edges[c, b] = True
            targets[first], targets[second] = d, b
    return KnownEdges(edges, np.zeros_like(known.signs), known.valid)


def overlap(first: Float32, second: Float32, valid: Bool, *, num: int) -> float:
    """Return the Jaccard index of the ``num`` strongest pairs of two networks, such as those of two halves of cells."""
    tops = [_top(values, valid, num) for values in (first, second)]
    union = len(tops[0] | tops[1])
    return len(tops[0] & tops[1]) / union if union else float("nan")


def pooled_auroc(weights: Sequence[Float64], hits: Sequence[Bool]) -> float | None:
    """Return the mean AUROC over factors of ranking affected genes first; None if no factor has both kinds of genes."""
    found = []
    for values, is_hit in zip(weights, hits, strict=True):
        num, others = int(is_hit.sum()), int((~is_hit).sum())
        if num and others:
            found.append((rankdata(values)[is_hit].sum() - num * (num + 1) / 2) / (num * others))
    return float(np.mean(found)) if found else None


def _top(values: Float32, valid: Bool, num: int) -> set[int]:
    flat = np.where(valid, values, -np.inf).ravel()
    order = np.argsort(-flat, kind="stable")[:num]
    return set(order[np.isfinite(flat[order])].tolist())


def _candidates(weights: Float32, known: KnownEdges) -> tuple[Float32, Bool]:
    rows = (known.edges & known.valid).any(axis=1)
    valid = known.valid[rows]
    return weights[rows][valid], known.edges[rows][valid]
