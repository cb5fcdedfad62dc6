"""Answer requests with the predictions for their cells, as embedding and annotation do."""

# C cells, D width

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cytoray.tasks.endpoint import Answers, Question, ServedModel
from cytoray.tokens.cells import SparseCells

if TYPE_CHECKING:
    from cytoray.model.predictor import Predictions

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def predict_together(model: ServedModel, questions: Sequence[Question[Any]]) -> list[Predictions]:
    """Predict the cells of several requests as one, and return the predictions of each."""
    whole = model.predict(SparseCells.concatenate([question.cells for question in questions]))
    bounds = np.cumsum([0, *(question.cells.num_cells for question in questions)])
    return [whole.take(slice(start, stop)) for start, stop in pairwise(bounds)]


def join_predictions(parts: Sequence[Predictions], order: Int64) -> Predictions:
    """Return the predictions for C cells from those of parts; ``order`` (C,): the cells among those of the parts."""
    return type(parts[0]).concatenate(parts).take(order)


def is_uniform(cells: SparseCells) -> bool:
    """Whether some of the cells have the same kind of values as all of them: counts, or logarithms (at most 20).

    Tasks that infer the kind from all values of a request answer the cells of such a request independently.
    """
    filled = cells.num_genes_per_cell > 0
    if not filled.any():
        return True
    starts = cells.indptr[:-1][filled]
    has_fractions = np.logical_or.reduceat(cells.values != np.round(cells.values), starts)
    if not has_fractions.any():
        return True
    is_large = np.maximum.reduceat(cells.values, starts) > 20
    return bool(has_fractions.all()) and bool((is_large == is_large[0]).all())


def without_answer(predictions: Predictions) -> list[int]:
    """Return the rows of cells that the model could not predict for, as they have no gene that it knows."""
    rows: list[int] = np.flatnonzero(~np.isfinite(predictions.embeddings[:, 0])).tolist()
    return rows


def read_embeddings(answers: Answers) -> Float32:
    """Return the embeddings (C, D) in the answers to C cells, NaN for cells without one."""
    found = [cell.get("embedding") for cell in answers.cells]
    width = next((len(embedding) for embedding in found if embedding is not None), None)
    if width is None:
        width = answers.service.get("embedding_width", 0)
    none = [np.nan] * width
    return np.array([none if one is None else one for one in found], np.float32).reshape(len(found), width)
