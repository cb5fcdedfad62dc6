"""How unlike the cells of its own label a cell is, by the labels' discriminants: by position, and by direction alone.

The score is the sum, over both, of the logarithm of the mean distance to the nearest training cells of the label, in
standard deviations of those cells' own. Its conformal p-value is small for a type that the reference does not have.
Directions hardly change with an experiment's depth and genes: by distances among genes' components, which recognise
left-out types as well, a third of the cells of another experiment on the same types would be unseen.
"""

# C cells, A anchors, P components, L discriminants, K labels

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.adaptation import nearest_neighbours
from cytoray.evaluation.conformal import Strangeness
from cytoray.tasks.mapping.spaces import unit

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
NUM_ANCHORS = 500  # of a label
NUM_NEAREST = 15
SMALLEST_DISTANCE, SMALLEST_SPREAD = 1e-6, 0.05


@dataclass(frozen=True, eq=False)
class Oddness:
    """Training cells of each label to measure distances to, and how far these usually are from each other."""

    anchors: Float32  # (A, P)
    codes: Int64  # (A,)
    discriminants: Float32  # (P, L); L may be 0
    usual: Float64  # (K, 2, 2) mean and standard deviation of the log-distance, by label and space
    known: Strangeness | None = None  # of held-out cells

    def score(self, components_CP: Float32, label_C: Int64) -> Float64:
        """Return how odd each cell is for its label, (C,)."""
        scores = np.zeros(len(components_CP))
        for space, (anchors, points) in enumerate(self._both(components_CP)):
            for label in np.unique(label_C):
                rows = label_C == label
                own = anchors[self.codes == label]
                if len(own):
                    mean, spread = self.usual[label, space]
                    scores[rows] += (_log_distance(points[rows], own) - mean) / spread
        return scores

    def p_values(self, components_CP: Float32, label_C: Int64) -> Float64:
        """Return how probable so odd a cell is among cells of its label, (C,)."""
        assert self.known is not None, "calibrated"
        return self.known.p_values(self.score(components_CP, label_C), label_C)

    def _both(self, components_CP: Float32) -> Iterator[tuple[Float32, Float32]]:
        anchors, points = self.anchors, components_CP
        if self.discriminants.shape[1] > 1:
            anchors, points = anchors @ self.discriminants, points @ self.discriminants
        yield anchors, points
        yield unit(anchors), unit(points)


def fit_oddness(
    components_CP: Float32, codes_C: Int64, discriminants_PL: Float32, *, num_labels: int, seed: int = 0
) -> Oddness:
    """Choose anchors of each label, and measure how far they are from each other; not calibrated yet."""
    order = np.random.default_rng(seed).permutation(len(codes_C))
    chosen = [np.sort(order[codes_C[order] == label][:NUM_ANCHORS]) for label in range(num_labels)]
    rows = np.concatenate([np.empty(0, np.int64), *chosen])
    usual = np.zeros((num_labels, 2, 2))
    usual[:, :, 1] = 1
    found = Oddness(components_CP[rows], codes_C[rows], discriminants_PL, usual)
    for space, (anchors, _) in enumerate(found._both(components_CP[:0])):
        logs = [_log_distance(own, None) for own in (anchors[found.codes == label] for label in range(num_labels))]
        everything = np.concatenate(logs)
        for label, own in enumerate(logs):
            values = own if len(own) > 2 else everything
            if len(values):
                usual[label, space] = values.mean(), max(float(values.std()), SMALLEST_SPREAD)
    return found


def _log_distance(points: Float32, anchors: Float32 | None) -> Float64:
    """Logarithm of the mean distance to the nearest anchors, or of anchors to each other; empty for a lone one."""
    if anchors is None and len(points) < 2:
        return np.empty(0)
    _, distances = nearest_neighbours(points, anchors, num=NUM_NEAREST)
    logged: Float64 = np.log(np.maximum(distances.mean(axis=1, dtype=np.float64), SMALLEST_DISTANCE))
    return logged
