"""Labelled cells, and what an annotator answers to those of one split."""

# C cells, T test cells, K labels

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.adaptation import adapt_frequencies, nearest_neighbours, smooth_over_neighbours
from cytoray.evaluation.annotator import Annotator
from cytoray.evaluation.splits import Split
from cytoray.evaluation.stacking import Choice
from cytoray.evaluation.voters import Expression

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


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
class Answers:
    """Probabilities of the test cells of one split, and what else is scored."""

    split: Split
    product: Float64  # (T, K)
    baseline: Float64
    floor: Int64  # (T,) the commonest label
    distances: Float64  # (T,) to the training cells of the predicted label, relative to theirs
    in_set: npt.NDArray[np.bool_]  # (T, K)
    choice: Choice  # the last one: with a transformer, whether it joined
    adapted: Float64 | None = None  # (T, K), transductive
    model: Float64 | None = None  # (T, K), of the transformer alone
    random_start: Float64 | None = None  # (T, K) log-probabilities of one of random weights, fine-tuned likewise


def answer(
    annotator: Annotator, query: Expression, split: Split, *, adapt: bool = False, transformer: Float64 | None = None
) -> Answers:
    """Annotate the cells of a query; ``adapt`` also adapts to the query as a whole.

    ``transformer``: its log-probabilities (T, K), if there is one.
    """
    found = annotator.annotate(query, transformer=transformer)
    adapted = None
    if adapt:
        frequencies = np.maximum(annotator.frequencies, 1e-6)
        neighbours, _ = nearest_neighbours(annotator.near.features.transform(query))
        adapted = smooth_over_neighbours(adapt_frequencies(found.probabilities, frequencies), neighbours, times=2)
    return Answers(
        split,
        found.probabilities,
        found.baseline,
        np.full(len(found.probabilities), int(annotator.frequencies.argmax())),
        found.distances,
        found.in_set,
        annotator.choice if annotator.joined is None or not annotator.uses_transformer else annotator.joined,
        adapted,
        None if transformer is None else np.exp(transformer),
    )
