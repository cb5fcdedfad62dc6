"""Embeddings of cells as a table, beside the labels that the model gives them: what ``cytoray embed`` writes."""

# C cells, D width

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cytoray.tasks.annotation.answers import status_of
from cytoray.tasks.endpoint import Endpoint, Question
from cytoray.tasks.messages import ModelInfo
from cytoray.tasks.tables import model_metadata
from cytoray.tokens.cells import UInt64

if TYPE_CHECKING:
    from cytoray.model.predictor import Predictions


def table_of_embeddings(
    endpoint: Endpoint[Any, Any], question: Question[Any], predictions: Predictions, model: ModelInfo
) -> pa.Table:
    """Return the predictions for C cells as a table of C rows, without their ids."""
    return to_table(predictions, cell_ids=question.cells.cell_ids, model=model).drop_columns("cell_id")


def table_schema(width: int, *, model: ModelInfo) -> pa.Schema:
    """Return the columns of the result; the metadata name the model that made the embeddings."""
    fields = [
        pa.field("cell_id", pa.uint64(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), width), nullable=False),
        pa.field("label", pa.string()),  # null, like probability, if the model has no labels
        pa.field("probability", pa.float32()),
        pa.field("status", pa.string()),  # null, like the next two, if the model does not measure how sure it is
        pa.field("fitting", pa.string()),  # labels that fit the cell, separated by " | "
        pa.field("unseen_p", pa.float32()),
    ]
    return pa.schema(fields, metadata=model_metadata(model))


def to_table(predictions: Predictions, *, cell_ids: UInt64, model: ModelInfo) -> pa.Table:
    """Return the predictions for C cells as a table of C rows."""
    num_cells, width = predictions.embeddings.shape
    labels: list[str | None] = [None] * num_cells
    best = pa.nulls(num_cells, pa.float32())
    if predictions.probabilities is not None:
        known = np.isfinite(predictions.embeddings[:, 0])
        names = [predictions.labels[column] for column in predictions.probabilities.argmax(axis=1)]
        labels = [name if there else None for name, there in zip(names, known, strict=True)]
        best = pa.array(predictions.probabilities.max(axis=1), mask=~known)
    columns = [
        pa.array(cell_ids, pa.uint64()),
        pa.FixedSizeListArray.from_arrays(pa.array(predictions.embeddings.ravel(), pa.float32()), width),
        pa.array(labels, pa.string()),
        best,
        *_doubts(predictions),
    ]
    return pa.Table.from_arrays(columns, schema=table_schema(width, model=model))


def _doubts(predictions: Predictions) -> list[pa.Array]:
    """The columns status, fitting and unseen_p."""
    num_cells, doubts = len(predictions.embeddings), predictions.doubts
    if doubts is None:
        return [pa.nulls(num_cells, kind) for kind in (pa.string(), pa.string(), pa.float32())]
    empty = np.isnan(doubts.unseen_p)
    fitting = [[predictions.labels[at] for at in np.flatnonzero(row)] for row in doubts.in_set]
    status = [status_of(len(labels), p) for labels, p in zip(fitting, doubts.unseen_p.tolist(), strict=True)]
    texts = [" | ".join(labels) for labels in fitting]
    columns = ((status, pa.string()), (texts, pa.string()), (doubts.unseen_p, pa.float32()))
    return [pa.array(values, kind, mask=empty) for values, kind in columns]
