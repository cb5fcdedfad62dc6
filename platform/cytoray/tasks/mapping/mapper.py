"""A fitted mapper: from cells to labels with their probabilities and doubts, neighbours and places on the map.

All that was learned is arrays, so that a service answers without training libraries; ``fitting`` learns it.
"""

# C cells of the query, R of the reference, P components, K labels, N neighbours

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.conformal import PredictionSets, Strangeness
from cytoray.evaluation.stacking import Blend
from cytoray.evaluation.voters import COUNTS_PER_CELL, Expression, Voter
from cytoray.tasks.mapping.index import NeighbourIndex
from cytoray.tasks.mapping.oddness import Oddness
from cytoray.tasks.mapping.spaces import Space
from cytoray.tasks.mapping.votes import project, vote

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Embed = Callable[[Expression], Float32]  # embeddings (C, D) of cells
NEIGHBOURS = "neighbours"  # the voter that is the vote of a cell's neighbours
CHUNK = 2_048  # cells whose features are held at a time
UNSEEN_P = 0.02  # a cell with a smaller p-value is unassigned


@dataclass(frozen=True, eq=False)
class Mapped:
    """Answers to C cells."""

    probabilities: Float64  # (C, K)
    sets: Bool  # (C, K) labels that the calibrated set of the cell holds
    unseen_p: Float64  # (C,) small for a type that the reference does not have
    percentile: Float64  # (C,) reference cells of the label that lie no nearer to their neighbours, in percent
    neighbours: Int64  # (C, N) rows of the reference, nearest first
    distances: Float32  # (C, N) between unit vectors
    places: Float64  # (C, 2) on the reference's map
    votes: Float64  # (C, K) log-probabilities by the neighbours alone
    baseline: Float64 | None = None  # (C, K) of tuned logistic regression, if it was kept

    @property
    def labels(self) -> Int64:
        """The most probable label of each cell, (C,)."""
        labels: Int64 = self.probabilities.argmax(axis=1)
        return labels

    @property
    def unassigned(self) -> Bool:
        """Cells (C,) unlike those of every label."""
        return self.unseen_p < UNSEEN_P

    @property
    def ambiguous(self) -> Bool:
        """Cells (C,) that several labels fit; an unassigned cell is not also ambiguous."""
        several: Bool = (self.sets.sum(axis=1) > 1) & ~self.unassigned
        return several

    @staticmethod
    def concatenate(parts: Sequence[Mapped]) -> Mapped:
        """Return the answers to all cells; all parts have a baseline, or none has."""
        if len(parts) == 1:
            return parts[0]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        baselines = [part.baseline for part in parts if part.baseline is not None]
        return Mapped(**joined, baseline=np.concatenate(baselines) if baselines else None)

    def take(self, rows: Int64) -> Mapped:
        """Return the answers to some of the cells."""
        taken = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return Mapped(**taken, baseline=None if self.baseline is None else self.baseline[rows])


@dataclass(frozen=True, eq=False)
class Mapper:
    """Everything that was learned from the reference but its index."""

    labels: tuple[str, ...]  # (K,)
    counts: Int64  # (K,) reference cells of each label
    num_neighbours: int
    space: Space
    voters: Mapping[str, Voter]
    product: Blend  # of voters and neighbours
    sets: PredictionSets
    oddness: Oddness
    quality: Strangeness  # mean distance of held-out reference cells to their neighbours, by label
    shares: Float32  # (V,) mean share of each gene in a reference cell's counts
    baseline: Blend | None = None  # tuned logistic regression

    def query(self, cells: Expression, measured: Bool | None) -> Expression:
        """Return the cells of a query as the mapper is to see them, if only some genes were measured."""
        if measured is None:
            return cells
        return replace(cells, measured=measured, depth=COUNTS_PER_CELL * max(self.coverage(measured), 1e-6))

    def coverage(self, measured: Bool) -> float:
        """Return the share of a usual reference cell's counts that are in the measured genes."""
        return float(min(self.shares[measured].sum(dtype=np.float64), 1.0))

    def points(self, cells: Expression, embed: Embed | None) -> Float32:
        """Return the unit vectors of all cells, computed for a part of them at a time."""
        parts = []
        for start in range(0, cells.num_cells, CHUNK):
            some = cells.take(np.arange(start, min(start + CHUNK, cells.num_cells)))
            embeddings = embed(some) if embed is not None and self.space.uses_embeddings else None
            parts.append(self.space.points(self.space.features.transform(some), embeddings))
        return np.concatenate(parts)

    def map(
        self,
        cells: Expression,
        embeddings: Float32 | None,
        *,
        index: NeighbourIndex,
        codes_R: Int64,
        plane_R: Float64 | None = None,
    ) -> Mapped:
        """Answer C cells, each independently of the others; ``plane_R`` (R, 2) is the reference's map."""
        parts = [
            self._map(
                cells.take(np.arange(start, min(start + CHUNK, cells.num_cells))),
                None if embeddings is None else embeddings[start : start + CHUNK],
                (index, codes_R, np.zeros((len(codes_R), 2)) if plane_R is None else plane_R),
            )
            for start in range(0, max(cells.num_cells, 1), CHUNK)
        ]
        return Mapped.concatenate(parts)

    def _map(
        self, cells: Expression, embeddings: Float32 | None, reference: tuple[NeighbourIndex, Int64, Float64]
    ) -> Mapped:
        index, codes_R, plane_R = reference
        components = self.space.features.transform(cells)
        neighbours, distances = index.search(self.space.points(components, embeddings), self.num_neighbours)
        answers = {name: voter.log_probabilities(cells) for name, voter in self.voters.items()}
        answers[NEIGHBOURS] = vote(distances, codes_R[neighbours], self.counts)
        probabilities = np.exp(self.product.combine(answers))
        labels = probabilities.argmax(axis=1)
        return Mapped(
            probabilities,
            self.sets.contain(probabilities),
            self.oddness.p_values(components, labels),
            100 * self.quality.p_values(distances.mean(axis=1, dtype=np.float64), labels),
            neighbours,
            distances,
            project(distances, plane_R[neighbours]),
            answers[NEIGHBOURS],
            None if self.baseline is None else np.exp(self.baseline.combine(answers)),
        )


_ARRAYS = (
    "probabilities", "sets", "unseen_p", "percentile", "neighbours", "distances", "places", "votes"
)  # fmt: skip
