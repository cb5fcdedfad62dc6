"""The annotator that a bundle carries: fitted after its transformer was trained, and used wherever it answers.

predictor = build_predictor(bundle)  # of a bundle with or without an annotator
"""

# C cells, K labels, V genes of the vocabulary

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.errors import ModelError
from cytoray.evaluation.annotator import Annotator
from cytoray.evaluation.annotator_file import FILE, from_bytes
from cytoray.evaluation.voters import Expression
from cytoray.tokens.cells import SparseCells

if TYPE_CHECKING:
    from cytoray.model.bundle import ModelBundle
    from cytoray.model.predictor import CellPredictor, Doubts

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
SMALLEST = 1e-6  # probability that a logarithm sees


def build_predictor(bundle: ModelBundle, *, empty_cells: Literal["error", "nan"] = "error") -> CellPredictor:
    """Return the predictor of a bundle, whose labels are those of its annotator if it has one.

    Raises ModelError for an annotator that cannot be read or has other labels.
    """
    from cytoray.model.predictor import CellPredictor

    return CellPredictor(bundle, empty_cells=empty_cells, annotate=bundle_annotator(bundle))


def bundle_annotator(bundle: ModelBundle) -> BundleAnnotator | None:
    """Return the annotator of a bundle as a predictor uses it; None if it has none."""
    annotator = load_annotator(bundle)
    return None if annotator is None else BundleAnnotator(annotator, bundle.vocabulary.size)


def load_annotator(bundle: ModelBundle) -> Annotator | None:
    """Return the annotator of a bundle; None if it has none. ModelError for one that does not fit the bundle."""
    if FILE not in bundle.attachments:
        return None
    annotator = from_bytes(bundle.attachments[FILE].read(), num_genes=bundle.vocabulary.size)
    if annotator.labels != bundle.labels:
        raise ModelError(
            "The annotator of this bundle has other labels than its model.", remedy="Fine-tune the model again."
        )
    return annotator


class BundleAnnotator:
    """Annotation of cells over the vocabulary of a bundle."""

    def __init__(self, annotator: Annotator, num_genes: int) -> None:
        self._annotator, self._num_genes = annotator, num_genes

    def __call__(self, cells: SparseCells, probabilities: Float32) -> tuple[Float32, Doubts]:
        """Return the probabilities (C, K) of the annotator, and its doubts."""
        from cytoray.model.predictor import Doubts

        found = self._annotator.annotate(
            as_expression(cells, num_genes=self._num_genes), transformer=logarithms(probabilities)
        )
        return found.probabilities.astype(np.float32), Doubts(found.in_set, found.unseen_p.astype(np.float32))


def as_expression(cells: SparseCells, *, num_genes: int) -> Expression:
    """Return cells as a matrix (C, V) whose rows are counts or, if they have fractions, normalised expression."""
    values = cells.values.astype(np.float32)
    return Expression.of(sparse.csr_matrix((values, cells.gene_ids, cells.indptr), (cells.num_cells, num_genes)))


def logarithms(probabilities: Float32) -> Float64:
    """Return log-probabilities (C, K), none below that of 1e-6."""
    logged: Float64 = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
    return logged
